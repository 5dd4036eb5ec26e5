"""Placements that meet a budget: a wanted speed-up, or FLOPs; those that keep the most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from patchmerger.costs.placements import Placement, PlacementCosts
from patchmerger.runs.text import significant


def meeting(
    costs: PlacementCosts,
    name: str,
    mergers: int,
    num_tokens: Sequence[int],
    *,
    speedup: float | None = None,
    gflops: float | None = None,
) -> list[Placement]:
    """The placements that meet a budget, the one to try first at the front.

    Raises:
        ValueError: None meets it, or none is needed; ``name`` is that of the model.
    """
    budget = flops_within(costs, speedup, gflops)
    if gflops is not None and budget >= costs.cost.flops:
        whole = significant(costs.cost.flops / 1e9, 4)
        raise ValueError(f"gflops ({gflops:g}) is met without a merger: {name} has {whole} GFLOPs")
    found = placements_within(costs, mergers, num_tokens, budget)
    if not found:
        raise ValueError(_nearest(name, costs, mergers, num_tokens, speedup, gflops, budget))
    return found


def flops_within(costs: PlacementCosts, speedup: float | None, gflops: float | None) -> float:
    """The FLOPs of one image that a wanted speed-up, or so many GFLOPs, leave."""
    return gflops * 1e9 if gflops is not None else costs.cost.flops / (speedup or 1)


def placements_within(costs: PlacementCosts, mergers: int, num_tokens: Sequence[int], budget: float) -> list[Placement]:
    """The placements of at most ``budget`` FLOPs that keep the most: the latest first, then those with more tokens.

    Left out are those to which another one is preferable: as late in every place, as many tokens in each, and more
    so somewhere. So are pairs in which one of the two mergers would do.
    """
    found: list[Placement] = []
    descending = sorted(set(num_tokens), reverse=True)
    for tokens in combinations(descending, mergers):
        for *first, last in _latest(costs, tokens, budget):
            after = (*first, last)
            if mergers == 1 or all(costs.flops([a], [t]) > budget for a, t in zip(after, tokens, strict=True)):
                found.append(costs.placement(after, tokens))
    best = [p for p in found if not any(other.keeps_more(p) for other in found)]
    return sorted(best, key=lambda p: (p.after, p.num_tokens), reverse=True)


def _latest(costs: PlacementCosts, tokens: Sequence[int], budget: float) -> list[tuple[int, ...]]:
    """For one merger the latest place within the budget; for two the latest second one to each first one."""
    starts = [()] if len(tokens) == 1 else [(place,) for place in range(costs.earliest, costs.depth - 1)]
    found = []
    for start in starts:
        begin = start[0] + 1 if start else costs.earliest
        for last in range(costs.depth - 1, begin - 1, -1):
            if costs.flops((*start, last), tokens) <= budget:
                found.append((*start, last))
                break
    return found


def _nearest(
    name: str,
    costs: PlacementCosts,
    mergers: int,
    counts: Sequence[int],
    speedup: float | None,
    gflops: float | None,
    budget: float,
) -> str:
    """What to say of a budget that no placement meets."""
    after = range(costs.earliest, costs.earliest + mergers)
    best = costs.placement(after, sorted(counts, reverse=True)[-mergers:])
    least = f"{best.speedup:.2f}×, {significant(best.flops / 1e9, 4)} GFLOPs, with {best.line}"
    more = "" if min(counts) == 1 else "; fewer tokens (num_tokens) or a smaller model cost less"
    asked = f"speedup ({speedup:g})" if gflops is None else f"gflops ({gflops:g})"
    if best.flops <= budget:
        return f"{asked} needs no second merger: one alone meets it, so give mergers=1"
    return f"{asked} is more than merging saves in {name}: the nearest that can be had is {least}{more}"
