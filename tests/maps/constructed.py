"""A model that is made so that each query picks patches that are known beforehand."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conftest import make_vit
from patchmerger import insert

Patch = tuple[int, int]
Picks = Sequence[Sequence[Patch]]
"""For each query the patches, (row, column), that it takes alike."""


def picking(
    *picks: Picks, grid: tuple[int, int] = (4, 4), variant: str = "class token", prefix: str = "keep"
) -> nn.Module:
    """A ViT with a merger for each of ``picks``, after blocks 1, 2, …

    Its blocks change nothing, and the token of patch n is the n-th unit vector, whatever the image shows; so a query
    that is the sum of some unit vectors takes those patches alike, and next to nothing of the others.
    """
    rows, columns = grid
    vit = make_vit(variant, img_size=(8 * rows, 8 * columns), embed_dim=32)
    with torch.no_grad():
        for block in vit.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        vit.patch_embed.proj.weight.zero_()
        vit.patch_embed.proj.bias.zero_()
        vit.pos_embed.zero_()
        first = vit.pos_embed.shape[1] - rows * columns
        vit.pos_embed[0, first:] = 10 * torch.eye(rows * columns, 32)
    queries = [torch.stack([unit(patches, columns) for patches in merger]) for merger in picks]
    for number, weight in enumerate(queries, start=1):
        insert(vit, len(weight), after=number, init=weight, prefix=prefix)
    return vit


def unit(patches: Sequence[Patch], columns: int) -> Tensor:
    query = torch.zeros(32)
    for row, column in patches:
        query[row * columns + column] = 10.0
    return query


def expected(picks: Picks, grid: tuple[int, int], images: int) -> Tensor:
    """(B, M, rows, columns): each query takes its patches alike."""
    maps = torch.zeros(images, len(picks), *grid)
    for token, patches in enumerate(picks):
        for row, column in patches:
            maps[:, token, row, column] += 1 / len(patches)
    return maps
