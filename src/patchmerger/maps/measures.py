"""What a merge map says in numbers: the patches that a token leads, how many it takes, and those that none takes."""

from __future__ import annotations

import torch
from torch import Tensor

NO_TOKEN = -1
"""In the place of a token: a patch that is unused, or no patch at all."""

UNUSED_BELOW = 0.1
"""A patch is unused where all tokens together give it less than this share of what it would have if all were alike."""


def taken(maps: Tensor, is_patch: Tensor) -> Tensor:
    """How much of each patch all tokens take together, in units of an equal share: ``(N / M) Σ_m A[m, n]``.

    Its mean over an image is 1: a patch at 2 goes into the tokens twice as much as under average pooling, one at 0 is
    dropped.

    Args:
        maps: A on the grid of patches, (B, M, rows, columns).
        is_patch: (B, rows, columns) bool.

    Returns:
        (B, rows, columns).
    """
    count = is_patch.sum(dim=(1, 2), keepdim=True)  # (B, 1, 1), N
    return maps.sum(dim=1) * count / maps.shape[1]


def unused(maps: Tensor, is_patch: Tensor) -> Tensor:
    """Where there is a patch that next to nothing of is taken, (B, rows, columns) bool; see :data:`UNUSED_BELOW`."""
    return (taken(maps, is_patch) < UNUSED_BELOW) & is_patch


def leading_tokens(maps: Tensor, is_patch: Tensor) -> Tensor:
    """The token that takes most of each patch, ``argmax_m A[m, n]``, from 0; :data:`NO_TOKEN` where none does.

    Args:
        maps: A on the grid of patches, (B, M, rows, columns).
        is_patch: (B, rows, columns) bool.

    Returns:
        (B, rows, columns), int64.
    """
    return maps.argmax(dim=1).masked_fill(unused(maps, is_patch) | ~is_patch, NO_TOKEN)


def shares(maps: Tensor, is_patch: Tensor) -> Tensor:
    """The share of an image's patches that each token leads, (B, M); with the unused ones they add up to 1."""
    leading = leading_tokens(maps, is_patch).flatten(1)  # (B, N)
    tokens = torch.arange(maps.shape[1], device=maps.device)
    led = (leading[:, None] == tokens[:, None]).sum(dim=2)  # (B, M)
    return led / is_patch.sum(dim=(1, 2))[:, None]


def effective_patches(maps: Tensor) -> Tensor:
    """How many patches each token takes: ``exp(−Σ_n p log p)`` with p its map, summing to 1.

    1 where it takes one patch, N where it takes all alike.

    Args:
        maps: A on the grid of patches, (B, M, rows, columns).

    Returns:
        (B, M).
    """
    rows = maps.flatten(2)
    p = rows / rows.sum(dim=2, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    effective: Tensor = torch.special.entr(p).sum(dim=2).exp()
    return effective


def are_sets(maps: Tensor) -> bool:
    """Whether each patch is in one token at most, as where a method keeps, drops and merges whole patches."""
    return bool(((maps > 0).sum(dim=1) <= 1).all())
