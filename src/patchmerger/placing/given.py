"""Positions and saliency maps that the caller gives for the next batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.mechanism.placed_tokens import placed_embedding
from patchmerger.mechanism.subclassing import host_class
from patchmerger.placing.placement import Placement


@contextmanager
def positions_given(
    model: nn.Module, positions: Tensor | Sequence[Sequence[float]], *, clamp: bool = False
) -> Iterator[None]:
    """Within, the tokens of ``model`` are at these positions, whatever its sampler.

    Args:
        model: A model whose tokens are placed.
        positions: Middles of windows, (N, 2), or (B, N, 2) for the images of a batch: row and column from 0 to 1.
        clamp: Move positions outside of the image to its edge; by default they are refused.

    Raises:
        ValueError: The tokens of ``model`` are not placed, or positions are not finite, outside of the image, or
            another number than its tokens.
    """
    placement: Placement = embedding_that_places(model).placement
    checked = checked_positions(positions, clamp=clamp)
    if checked.shape[-2] != placement.num_tokens:
        raise ValueError(
            f"positions {tuple(checked.shape)} must be those of {placement.num_tokens} tokens: (N, 2) or (B, N, 2) "
            f"with N = {placement.num_tokens}"
        )
    before, placement.given = placement.given, checked
    try:
        yield
    finally:
        placement.given = before


@contextmanager
def saliency_given(model: nn.Module, saliency: Tensor) -> Iterator[None]:
    """Within, the tokens of ``model`` are drawn to where ``saliency`` is high.

    Args:
        model: A model whose tokens are placed by the sampler "saliency".
        saliency: A map from 0, (h, w) for all images or (B, h, w): as high and wide as the images, or as many rows and
            columns as they have patches.

    Raises:
        ValueError: The tokens of ``model`` are placed otherwise, or the map has another shape, is negative or not
            finite.
    """
    placement: Placement = embedding_that_places(model).placement
    if placement.settings.sampler != "saliency":
        raise ValueError(f"saliency is for a model placed with sampler='saliency', not {placement.settings.sampler!r}")
    if saliency.ndim not in (2, 3):
        raise ValueError(f"saliency {tuple(saliency.shape)} must be a map (h, w), or (B, h, w)")
    if not bool(torch.isfinite(saliency).all()) or bool((saliency < 0).any()):
        raise ValueError("saliency must be finite and nowhere below 0")
    before, placement.saliency = placement.saliency, saliency
    try:
        yield
    finally:
        placement.saliency = before


def checked_positions(positions: Tensor | Sequence[Sequence[float]], *, clamp: bool) -> Tensor:
    """Positions (N, 2) or (B, N, 2) as a tensor, in the image.

    Raises:
        ValueError: They have another shape, are not finite, or lie outside of the image and are not to be clamped.
    """
    found = positions if isinstance(positions, Tensor) else torch.tensor(positions)
    found = found if found.is_floating_point() else found.float()
    if found.ndim not in (2, 3) or found.shape[-1] != 2 or found.shape[-2] == 0:
        raise ValueError(f"positions {tuple(found.shape)} must be (N, 2) or (B, N, 2): row and column from 0 to 1")
    if found.is_meta:
        return found
    if not bool(torch.isfinite(found).all()):
        raise ValueError("positions must be finite")
    if clamp:
        return found.clamp(0, 1)
    low, high = (float(value) for value in found.detach().aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"positions must be from 0 to 1, but are from {low:.4g} to {high:.4g}: give shares of the image's height "
            "and width, or clamp=True"
        )
    return found


def embedding_that_places(model: nn.Module) -> Any:
    """The patch embedding of a model whose tokens are placed; ``ValueError`` for another model."""
    embed = placed_embedding(model)
    if embed is None:
        raise ValueError(f"model ({host_class(model).__name__}) has no placed tokens: patchmerger.place(model) first")
    return embed
