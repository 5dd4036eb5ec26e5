"""Tokens that were placed in the image instead of cut out of a grid: where they are, and which model has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from patchmerger.mechanism.subclassing import Subclass, mixin_of


@dataclass(frozen=True)
class PlacedTokens:
    """Where the tokens of a batch are; it travels with them from the patch embedding, as an attribute of their tensor.

    Attributes:
        positions: Middles of their windows, (B, N, 2): row and column, from 0 (first edge) to 1 (last edge).
        grid: Rows and columns of patches that the plain model would cut the images into.
    """

    positions: Tensor
    grid: tuple[int, int]


def mark_placed(tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """``tokens`` (B, N, D) themselves, which now know where they are."""
    tokens.patchmerger_placed = PlacedTokens(positions, grid)  # type: ignore[attr-defined]
    return tokens


def placed_tokens(tokens: Tensor) -> PlacedTokens:
    """Where ``tokens`` are.

    Raises:
        RuntimeError: Their tensor was replaced after they were placed.
    """
    placed: PlacedTokens | None = getattr(tokens, "patchmerger_placed", None)
    if placed is None:
        raise RuntimeError(
            "placed tokens came without their positions: something after the patch embedding (a forward hook, say) "
            "replaced their tensor; take it away, or patchmerger.unplace(model)"
        )
    return placed


def placed_embedding(model: nn.Module) -> nn.Module | None:
    """The patch embedding of ``model`` that places its tokens; ``None`` where they are the patches of a grid."""
    embed = getattr(model, "patch_embed", None)
    placed = isinstance(embed, Subclass) and mixin_of(embed, "placing") is not None
    return cast(nn.Module, embed) if placed else None


def num_placed_tokens(model: nn.Module) -> int | None:
    """Tokens that ``model`` places in an image; ``None`` where it has the patches of a grid."""
    embed = placed_embedding(model)
    return None if embed is None else cast(int, embed.placement.num_tokens)  # type: ignore[union-attr]


def between_patches(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each patch of a grid is at each position: W, (B, N, rows · columns), each row of which sums to 1.

    Positions are (B, N, 2), from 0 to 1. Interpolation is bilinear between the middles of patches. Beyond the outer
    ones it goes on in a straight line, with a weight below 0, so that W is exact for whatever changes linearly over the
    grid, such as the phases of rotary positions.
    """
    rows, columns = (_along(positions[..., axis], size) for axis, size in enumerate(grid))
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2)  # (B, N, rows · columns)


def _along(positions: Tensor, size: int) -> Tensor:
    """The same along one axis, (B, N) → (B, N, size)."""
    place = positions[..., None] * size - 0.5
    lower = place.detach().floor().clamp(0, max(size - 2, 0))
    share = place - lower if size > 1 else torch.zeros_like(place)
    index = torch.arange(size, device=positions.device)
    return torch.where(index == lower, 1 - share, 0) + torch.where(index == lower + 1, share, 0)
