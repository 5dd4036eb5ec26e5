"""What a share of the patches comes to in tokens and FLOPs, and how mergers stay within it."""

from __future__ import annotations

import copy
from bisect import bisect_right
from dataclasses import dataclass
from typing import cast

from torch import nn

from patchmerger.costs.budget import meeting
from patchmerger.costs.counting import count_parts, on_meta
from patchmerger.costs.placements import PlacementCosts
from patchmerger.hosts import find_host
from patchmerger.insertion.inserting import insert
from patchmerger.placing.in_model import place
from patchmerger.studies.trained_settings import PlacingStudySettings


@dataclass(frozen=True)
class Merge:
    """Where tokens, placed ones or the patches, are merged to stay within a budget, and to how many."""

    num_placed: int
    after: int
    num_tokens: int


@dataclass(frozen=True)
class Budget:
    """What a share of the patches comes to: so many placed tokens, and the FLOPs of the model with them.

    ``merges`` says where "merger" and "placed-merger" merge to use no more; without what cannot stay within the FLOPs.
    """

    num_tokens: int
    flops: int
    merges: dict[str, Merge]


def budget_of(net: nn.Module, fraction: float, settings: PlacingStudySettings) -> Budget:
    """The budget of a share of the patches, and how mergers stay within it.

    A merger keeps at least a quarter as many tokens. "merger" stands as late as that allows; "placed-merger" stands
    halfway, as in the paper, and what it saves goes into more placed tokens.
    """
    host = find_host(net)
    patches = cast(int, host.num_patches)
    count = max(1, round(fraction * patches))
    empty = on_meta(net)

    def placed_flops(placed: int, merged: tuple[int, int] | None = None) -> int:
        model = place(copy.deepcopy(empty), placed, "grid")
        return sum(part.flops for part in count_parts(model if merged is None else insert(model, *merged)))

    flops = placed_flops(count)
    merges: dict[str, Merge] = {}
    if count == patches:
        return Budget(count, flops, merges)
    kept = max(1, count // 4)
    if "merger" in settings.methods:
        try:
            found = meeting(
                PlacementCosts(empty, None, None), type(net).__name__, 1, range(kept, count), gflops=flops / 1e9
            )
            merges["merger"] = Merge(patches, found[0].after[0], found[0].num_tokens[0])
        except ValueError:  # fewer FLOPs than one merger leaves
            pass
    if "placed-merger" in settings.methods and count > kept:
        after = len(host.blocks) // 2
        placed = bisect_right(range(count, patches + 1), flops, key=lambda n: placed_flops(n, (kept, after)))
        if placed:
            merges["placed-merger"] = Merge(count + placed - 1, after, kept)
    return Budget(count, flops, merges)
