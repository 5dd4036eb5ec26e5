"""Where mergers can stand in a model, and what each choice costs: a few counted runs, then only additions.

FLOPs add up over the blocks: those before a merger see N tokens, those after it M. So one count with a merger after
block 1 gives, for each M, the costs of all places:

    F(k, M) = embedding + Σ_{i ≤ k} b_i(N) + merger(N, M) + Σ_{i > k} b_i(M) + extra(M) + head(M)

where:

- b_i(n) is block i on n tokens, prefix tokens counted in;
- merger(N, M) has what a method that works inside block k saves in its MLP, which runs on M tokens;
- extra(M) is what the first block after a merge costs more than it would further back (with rotary positions: their
  centroids are computed there).

Of two mergers each pair of M is counted once more.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from patchmerger.costs.counting import count_parts, on_meta
from patchmerger.costs.model_cost import Cost, cost
from patchmerger.hosts import UnsupportedModelError, block_names, find_host
from patchmerger.hosts.example_inputs import fit_to_size
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.options import Positions
from patchmerger.reducers.names import ReducerName

ImageSize = int | tuple[int, int] | None


@dataclass(frozen=True)
class Placement:
    """Mergers in a model, and the speed-up that they predict.

    Attributes:
        after: The blocks that the mergers stand after, counted from 1.
        num_tokens: Tokens that each of them gives, prefix tokens not counted in.
        flops: FLOPs of one image, 1 multiply-add = 2 FLOPs.
        speedup: FLOPs of the plain model / ``flops``.
        positions: What ``insert`` must be told of positions; ``None`` where its default will do.
        reducer: The method.
    """

    after: tuple[int, ...]
    num_tokens: tuple[int, ...]
    flops: int
    speedup: float
    positions: Positions | None = None
    reducer: ReducerName = "patchmerger"

    @property
    def line(self) -> str:
        """The line of Python that makes it."""
        tokens, after = ((x[0] if len(x) == 1 else list(x)) for x in (self.num_tokens, self.after))
        positions = f', positions="{self.positions}"' if self.positions else ""
        reducer = f', reducer="{self.reducer}"' if self.reducer != "patchmerger" else ""
        return f"patchmerger.insert(model, num_tokens={tokens}, after={after}{positions}{reducer})"

    def apply(self, model: nn.Module) -> nn.Module:
        """Insert the mergers into ``model``, in place."""
        return insert(model, self.num_tokens, self.after, positions=self.positions, reducer=self.reducer)

    def keeps_more(self, other: Placement) -> bool:
        """Whether each merger is as late as the other's and keeps as many tokens, and some more so."""
        ours, theirs = (*self.after, *self.num_tokens), (*other.after, *other.num_tokens)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class _Merged:
    """FLOPs with some number of tokens: of each block after a merge, and of what else depends on that number.

    Blocks are as far back as the extra, what the first one after a merge costs more, is not due.
    """

    blocks: dict[str, int]
    merger: int
    extra: int
    end: int


class PlacementCosts:
    """FLOPs of a plain model on the meta device for every placement of one merger or two.

    ``positions`` are given to ``insert``; by default what the model needs. ``earliest`` is the first block to merge
    after, or inside of.

    Raises:
        UnsupportedModelError: The model cannot take a merger, or not this one.
    """

    def __init__(
        self,
        plain: nn.Module,
        image_size: ImageSize,
        positions: Positions | None = None,
        reducer: ReducerName = "patchmerger",
        earliest: int = 1,
    ) -> None:
        host = find_host(plain)
        self.names = block_names(plain, host)
        self.cost: Cost = cost(plain, image_size)
        self.plain = {part.name: part.flops for part in self.cost.parts}
        self.num_patches = self.cost.parts[0].tokens_in
        if host.num_patches is not None:  # `insert` counts on the model's own image size
            self.num_patches = min(self.num_patches, host.num_patches)
        self._alike = len(host.blocks) > 2 and _shapes(host.blocks[1]) == _shapes(host.blocks[2])
        self.reducer, self.earliest = reducer, earliest
        self._model, self._size = plain, None if image_size is None else self.cost.image_size
        self.positions = needed_positions(plain) if positions is None else positions
        self._known: dict[Any, int] = {}
        self._merged = cache(self._count_merged)
        self._pair = cache(self._count_pair)

    @property
    def depth(self) -> int:
        """Blocks of the model."""
        return len(self.names)

    def placement(self, after: Sequence[int], num_tokens: Sequence[int]) -> Placement:
        """The placement of one merger or two, with its cost."""
        flops = self.flops(after, num_tokens)
        return Placement(tuple(after), tuple(num_tokens), flops, self.cost.flops / flops, self.positions, self.reducer)

    def flops(self, after: Sequence[int], num_tokens: Sequence[int]) -> int:
        """FLOPs of one image with a merger after each block in ``after``; they give ``num_tokens`` each."""
        merged = self._merged(num_tokens[0])
        flops = self.plain["patch_embed"] + _total(self.plain, self.names[: after[0]]) + merged.merger + merged.extra
        if len(after) == 2:
            flops += _total(merged.blocks, self.names[after[0] : after[1]]) + self._pair(num_tokens[0], num_tokens[1])
            merged = self._merged(num_tokens[1])
            flops += merged.extra
        return flops + _total(merged.blocks, self.names[after[-1] :]) + merged.end

    def _count_merged(self, num_tokens: int) -> _Merged:
        parts = self._count((1,), (num_tokens,))
        begin, *later = self.names
        known = ("patch_embed", begin, f"{begin}.merger", *later)
        blocks, extra = {name: parts[name] for name in later}, 0
        if len(later) > 1:
            # Blocks 2 and 3 are the same block at two places, or block 3 is measured at both of them.
            first = parts[later[0]] if self._alike else self._count((2,), (num_tokens,))[later[1]]
            extra = first - parts[later[1]]
            blocks[later[0]] -= extra
        return _Merged(
            blocks=blocks,
            merger=parts[begin] + parts[f"{begin}.merger"] - self.plain[begin],
            extra=extra,
            end=sum(flops for name, flops in parts.items() if name not in known),
        )

    def _count_pair(self, first: int, second: int) -> int:
        """What a second merger costs, from ``first`` tokens to ``second``."""
        begin, merging, *later = self.names
        once, twice = self._merged(first), self._merged(second)
        others = self.plain["patch_embed"] + self.plain[begin] + once.merger + once.extra + once.blocks[merging]
        others += twice.extra + _total(twice.blocks, later) + twice.end
        return sum(self._count((1, 2), (first, second)).values()) - others

    def _count(self, after: tuple[int, ...], num_tokens: tuple[int, ...]) -> dict[str, int]:
        """FLOPs by part, in a run of the model."""
        merged = insert(on_meta(self._model), num_tokens, after, positions=self.positions, reducer=self.reducer)
        model = fit_to_size(merged, self._size)
        return {part.name: part.flops for part in count_parts(model, self._size, self._known)}


def needed_positions(model: nn.Module) -> Positions | None:
    """What ``insert`` must be told of positions for this plain model on the meta device; ``None`` where nothing."""
    try:
        insert(copy.deepcopy(model), 1, 1)
    except UnsupportedModelError as error:
        if error.kind != "relative bias":
            raise
        return "drop"
    return None


def _shapes(block: nn.Module) -> list[tuple[object, ...]]:
    """What makes two blocks alike."""
    return [(type(m), *(p.shape for p in m.parameters(recurse=False))) for m in block.modules()]


def _total(flops: dict[str, int], names: Sequence[str]) -> int:
    return sum(flops[name] for name in names)
