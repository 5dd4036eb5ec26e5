"""Rotary positions (RoPE) of merged tokens: each gets the centroid of its patches under A.

A rotary table holds the cosine and sine of the phase of each patch in each of d bands. The phase is affine in the
patch's place: ``θ = θ₀ + row · a + column · b``. So the phase of the centroid ``Σ A (row, column)`` is ``Σ A θ``, and
the table alone is enough to find it, whatever formula made it (axial, mixed, DINOv3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# Neighbours of one row differ by the same rotation; a new row begins where some band differs by more than this.
_NEW_ROW = 0.1


@dataclass(frozen=True)
class Rope:
    """How a host hands its rotary table to a block.

    Attributes:
        arguments: Names of the block's arguments.
        layout: ``"sin|cos"``, one tensor (…, N, 2d) with the sines before the cosines, as in timm; ``"(cos, sin)"``, a
            pair of tensors (…, N, d), as in transformers; or ``"cos, sin"``, two arguments.
        leading: What stands before N in the shape of a table: ``"heads"``, nothing, or the heads (1 for all alike)
            and the images before them; or ``"images"`` alone.
    """

    arguments: tuple[str, ...] = ("rope",)
    layout: Literal["sin|cos", "(cos, sin)", "cos, sin"] = "sin|cos"
    leading: Literal["heads", "images"] = "heads"

    def table(self, given: Mapping[str, Any]) -> Any:
        """The table among the arguments of a block; ``None`` where there is none."""
        return given.get(self.arguments[0])

    def merge(self, given: Mapping[str, Any], weights: Tensor) -> dict[str, Any]:
        """The arguments that change for merged tokens: each gets the phases of its centroid, by A (B, M, N).

        The block's arguments have a table for the N patches; these have one of (B, 1 or heads, M, d), or (B, M, d)
        where there is no axis for heads.
        """
        weights = weights if self.leading == "images" else weights[:, None]
        cos, sin = _merge_table(*self._split(given), weights, _placed_phases(self.table(given)))
        return self._join(cos, sin)

    def without(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with which a block rotates no token."""
        if self.layout == "sin|cos":
            return {self.arguments[0]: None}
        cos, sin = self._split(given)
        if self.layout == "(cos, sin)":
            return self._join(cos[..., :0, :], sin[..., :0, :])
        return self._join(torch.ones_like(cos[..., :1, :]), torch.zeros_like(sin[..., :1, :]))

    def _split(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (…, N, d) each."""
        if self.layout == "sin|cos":
            sin, cos = given[self.arguments[0]].chunk(2, dim=-1)
        elif self.layout == "(cos, sin)":
            cos, sin = given[self.arguments[0]]
        else:
            cos, sin = (given[name] for name in self.arguments)
        return cos, sin

    def _join(self, cos: Tensor, sin: Tensor) -> dict[str, Any]:
        if self.layout == "sin|cos":
            return {self.arguments[0]: torch.cat((sin, cos), dim=-1)}
        if self.layout == "(cos, sin)":
            return {self.arguments[0]: (cos, sin)}
        return dict(zip(self.arguments, (cos, sin), strict=True))


@torch.fx.wrap  # one step of a graph that is traced symbolically
def _merge_table(cos: Tensor, sin: Tensor, weights: Tensor, phases: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the centroids, (…, M, d), for those of the patches (…, N, d) and A (…, M, N)."""
    phases = _mixed(weights, grid_phases(cos, sin) if phases is None else phases)
    return phases.cos().to(cos.dtype), phases.sin().to(sin.dtype)


def place_table(table: Tensor, weights: Tensor) -> Tensor:
    """The rotary table (B, 1 or heads, N, 2d) of tokens that were placed between the patches of a grid.

    That of the patches has sines before cosines, (rows · columns, 2d) or (heads, rows · columns, 2d); ``weights`` (B,
    N, rows · columns) are those of :func:`~patchmerger.mechanism.placed_tokens.between_patches`. The table keeps its
    phases, for a merge further on: placed tokens are in no order by which jumps of 2π could be told.
    """
    sin, cos = table.chunk(2, dim=-1)
    phases = _mixed(weights[:, None], grid_phases(cos, sin))  # (B, 1 or heads, N, d)
    placed = torch.cat((phases.sin(), phases.cos()), dim=-1).to(table.dtype)
    placed.patchmerger_phases = phases  # type: ignore[attr-defined]
    return placed


def _mixed(weights: Tensor, phases: Tensor) -> Tensor:
    """A θ, in the precision of the phases under autocast too: a phase of many turns needs all its digits."""
    kind = phases.device.type
    lowered = kind != "meta" and torch.is_autocast_enabled(kind)  # torch 2.8 compiles this, not is_autocast_available
    full = torch.autocast(kind, enabled=False) if lowered else nullcontext()
    with full:
        return weights.to(phases.dtype) @ phases


def _placed_phases(table: Any) -> Tensor | None:
    """The phases that :func:`place_table` left with a table."""
    return getattr(table, "patchmerger_phases", None) if isinstance(table, Tensor) else None


def grid_phases(cos: Tensor, sin: Tensor) -> Tensor:
    """The phases of patches in a grid, in radians and at least float32, without jumps of 2π from one to the next.

    The grid's width is read off the table of cosines and sines, (…, N, d), row by row. Each phase is the table's own;
    the affine form only chooses its branch, so rounding (of bfloat16, say) does not add up. A step between neighbours
    is taken to be at most π. Padding at the end, with cosine and sine 0, gets phases that mean nothing.
    """
    dtype = torch.promote_types(cos.dtype, torch.float32)
    cos, sin = cos.to(dtype), sin.to(dtype)
    padding = (cos == 0) & (sin == 0)
    phases = torch.atan2(sin, cos.masked_fill(padding, 1))  # (…, N, d), in (−π, π]
    count = phases.shape[-2]
    if count == 1:
        return phases
    steps = _turn(phases[..., 1:, :] - phases[..., :-1, :])  # (…, N − 1, d)
    right = steps[..., :1, :]  # (…, 1, d): one column on
    other = 2 * (_turn(steps - right) / 2).sin().abs()  # |e^{i·step} − e^{i·right}|
    new_row = (other > _NEW_ROW).any(dim=-1)  # (…, N − 1)
    new_row = torch.cat((torch.zeros_like(new_row[..., :1]), new_row), dim=-1)  # (…, N)
    index = torch.arange(count, device=phases.device)
    # The first patch of the second row; where there is no second row, the first patch, whose step down is 0.
    width = new_row.to(torch.int64).argmax(dim=-1, keepdim=True)  # (…, 1)
    row = torch.where(width > 0, index // width.clamp(min=1), 0)  # (…, N)
    column = index - row * width
    second_row = width[..., None].expand(*width.shape, phases.shape[-1])
    down = _turn(phases.gather(-2, second_row) - phases[..., :1, :])  # (…, 1, d): one row on
    affine = phases[..., :1, :] + row[..., None] * down + column[..., None] * right
    return phases + 2 * math.pi * ((affine - phases) / (2 * math.pi)).round().detach()


def _turn(angle: Tensor) -> Tensor:
    """An angle as a turn in [−π, π]."""
    return angle - 2 * math.pi * (angle / (2 * math.pi)).round()
