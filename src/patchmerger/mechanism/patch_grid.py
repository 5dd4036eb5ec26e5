"""Where the patches are in the images that run through a model, for mergers that need to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn

from patchmerger.mechanism.tracing import is_traced
from patchmerger.prior import grid_positions


@dataclass
class PatchGrid:
    """The places of the patches that come to a merger.

    Where images of several sizes are taken, the host tells them at each forward pass, by :func:`tell_grid`.

    Attributes:
        size: Rows and columns of patches; ``None`` until the host sets them.
        positions: In place of it the places themselves, (B, N, 2), where the images of a batch differ in size.
        only_told: Whether it is only told where patches are, and no merger asks for it.
        placed_in: Where tokens were placed and are no patches: rows and columns of those that they stand for.
    """

    size: tuple[int, int] | None = None
    positions: Tensor | None = None
    only_told: bool = False
    placed_in: tuple[int, int] | None = None
    _of_threads: dict[int, PatchGrid] = field(default_factory=dict, repr=False, compare=False)
    _traced: torch.fx.Proxy | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies know no places of a batch, which may be part of an autograd graph, or of one that is traced."""
        return {**vars(self), "positions": None, "_of_threads": {}, "_traced": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"_traced": None, **state})

    def tell(self, size: tuple[int, int] | None, positions: Tensor | None, placed_in: tuple[int, int] | None) -> None:
        """Where the patches of the next forward pass of this thread are; traced symbolically, of its graph alone."""
        if isinstance(traced := cast(Any, positions), torch.fx.Proxy):
            self._traced = traced
            return
        self.size, self.positions, self.placed_in = size, positions, placed_in
        if not torch.compiler.is_compiling():
            self._of_threads[get_ident()] = PatchGrid(size, positions, self.only_told, placed_in)

    def at(self, tokens: Tensor) -> PatchGrid:
        """The grid of the forward pass in which ``tokens`` come to the block that merges.

        It stays with their tensor, so that a checkpointed block which runs again does not take that of a later pass,
        nor one thread that of another. A compiled graph has its own.
        """
        if is_traced(tokens) or torch.compiler.is_compiling():
            return self
        known: tuple[PatchGrid, PatchGrid] | None = getattr(tokens, "patchmerger_grid", None)
        if known is None or known[0] is not self:
            known = self, self._of_threads.pop(get_ident(), None) or replace(self)
            tokens.patchmerger_grid = known  # type: ignore[attr-defined]
        return known[1]

    def places(self, tokens: Tensor) -> Tensor | None:
        """Positions of ``tokens`` (B, N, D): (N, 2), or (B, N, 2) where the images differ; ``None`` if none asks.

        Raises:
            ValueError: They are not known, or there are other tokens than patches.
        """
        if self.only_told:
            return None
        if self._traced is not None and getattr(tokens, "tracer", None) is self._traced.tracer:
            return cast(Tensor, self._traced)
        if self.positions is not None:
            if self.positions.shape[:2] != tokens.shape[:2]:
                raise _other_tokens(tokens, f"positions {tuple(self.positions.shape)}")
            return self.positions
        if self.size is None:
            raise ValueError(
                "a merger with prior='grid' does not know the grid of patches, as its blocks were called past the "
                "forward of their model: call the model itself"
            )
        rows, columns = self.size
        if not is_traced(tokens) and rows * columns != tokens.shape[1]:
            raise _other_tokens(tokens, f"a grid of {rows} × {columns} patches")
        return grid_positions(self.size, device=tokens.device)


def tell_grid(
    modules: Iterable[nn.Module],
    size: tuple[int, int] | None = None,
    positions: Tensor | None = None,
    placed_in: tuple[int, int] | None = None,
) -> None:
    """Tell the blocks among ``modules`` whose merger needs positions where the patches of this batch are."""
    for module in modules:
        grid = needed_grid(module)
        if grid is not None:
            grid.tell(size, positions, placed_in)


def needs_grid(modules: Iterable[nn.Module]) -> bool:
    """Whether one of the blocks among ``modules`` has a merger that must know where patches are."""
    return any(needed_grid(module) is not None for module in modules)


def needed_grid(module: nn.Module) -> PatchGrid | None:
    """The grid that a block's merger must know, and which the host sets at each forward pass."""
    grid: PatchGrid | None = getattr(getattr(module, "merge_state", None), "grid", None)
    return grid


def _other_tokens(tokens: Tensor, known: str) -> ValueError:
    return ValueError(
        f"{tokens.shape[1]} tokens came to a merger with prior='grid', but there is {known}: patches were left out or "
        "added on the way, so that their places are not known"
    )
