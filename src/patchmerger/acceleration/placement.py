"""Where to merge in a trained model, for a wanted speed-up: predicted or measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from patchmerger.acceleration.settings import PlacementSettings, QueryInit
from patchmerger.costs.budget import meeting
from patchmerger.costs.counting import on_meta
from patchmerger.costs.placements import Placement, PlacementCosts
from patchmerger.hosts import find_host
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.options import Positions
from patchmerger.presets import preset
from patchmerger.reducers.build import all_work_inside
from patchmerger.reducers.names import ReducerName, placement_in_words
from patchmerger.speed.measurement import measure as measure_speed
from patchmerger.speed.settings import Precision, TimingSettings

# Finer than powers of two, so that no more tokens go than must; the paper's 8 is the fewest, where there are enough.
_COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256)
# Placements that predict so many times the wanted speed-up are measured beside each other.
_RESERVES = (1.0, 1.08, 1.16, 1.25, 1.35, 1.5)


@dataclass(frozen=True)
class ChosenPlacement:
    """Where one merger goes: after a block, counted from 1.

    Attributes:
        predicted: Speed-up by FLOPs.
        measured: Speed-up as measured when it was chosen; ``None`` where it was not.
        wanted: The speed-up that was asked for; ``None`` where block and tokens were given.
        reducer: The method. One that works inside a block does so in the block after ``after``, as in the papers, so
            that the front is the same for all methods.
        compared: Where several were compared untrained, of each its ``reducer``, ``after``, ``num_tokens``,
            ``predicted`` and ``divergence`` from the plain model's scores in nats.
    """

    after: int
    num_tokens: int
    positions: Positions | None
    predicted: float
    measured: float | None = None
    wanted: float | None = None
    reducer: ReducerName = "patchmerger"
    compared: Sequence[dict[str, Any]] = ()

    def merged(self, net: nn.Module, query_init: QueryInit) -> nn.Module:
        """A copy of ``net`` with the merger; located queries have places, and W near zero."""
        if self.reducer != "patchmerger":
            after = self.after + _inside(self.reducer)
            return insert(copy.deepcopy(net), self.num_tokens, after, positions=self.positions, reducer=self.reducer)
        settings = preset("located" if query_init == "located" else "default", find_host(net).dim)
        return insert(copy.deepcopy(net), self.num_tokens, self.after, positions=self.positions, **settings)

    @property
    def in_words(self) -> str:
        """Where it is, and to how many tokens it merges."""
        return placement_in_words(self.reducer, self.num_tokens, self.after)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def choose_placement(
    net: nn.Module,
    settings: PlacementSettings = PlacementSettings(),
    *,
    batch_size: int = 16,
    precision: Precision = "float32",
) -> ChosenPlacement:
    """The latest placement whose speed-up reaches what is wanted, with as many tokens as that allows.

    Wanted is a speed-up, or ``after`` and ``num_tokens``; ``num_tokens`` alone gives the latest placement with so many.
    Batch size and precision are of the measurement, if there is one.

    Raises:
        ValueError: No placement reaches it, the message names the fastest; or a block that is not there.
    """
    if settings.after is not None or not settings.measure:
        return candidate_placements(net, settings, 1)[0]
    wanted, costs, name = _wanted(settings), _costs(net, settings.positions, _method(settings)), type(net).__name__
    counts = _counts(costs, settings.num_tokens)
    found: dict[str, Placement] = {}
    for reserve in _RESERVES:
        try:
            best = meeting(costs, name, 1, counts, speedup=wanted * reserve)[0]
        except ValueError:
            if not found:
                raise
            break
        found.setdefault(best.line, best)
    models = {"plain": net, **{line: p.apply(copy.deepcopy(net)) for line, p in found.items()}}
    timings = measure_speed(models, TimingSettings(batch_size=batch_size, precision=precision, rounds=settings.rounds))
    for line, placement in found.items():
        if timings[line].speedup >= wanted:
            return _chosen(placement, wanted, timings[line].speedup)
    fastest = max(found, key=lambda line: timings[line].speedup)
    raise ValueError(
        f"speedup ({wanted:g}) is more than merging was measured to save here: {timings[fastest].speedup:.2f}× with "
        f"{fastest} ({found[fastest].speedup:.2f}× predicted); a larger batch or model comes closer to the prediction, "
        "or leave the measurement out"
    )


def candidate_placements(net: nn.Module, settings: PlacementSettings, count: int) -> list[ChosenPlacement]:
    """Placements that reach what is wanted by FLOPs, at most ``count``: the latest, then earlier ones with more tokens.

    Where the settings name the block, that alone is the answer.

    Raises:
        ValueError: No placement reaches it, or a block that is not there.
    """
    if settings.after is not None:
        num_tokens = 8 if settings.num_tokens is None else settings.num_tokens
        return [_given(net, settings, settings.after, num_tokens)]
    wanted, costs = _wanted(settings), _costs(net, settings.positions, _method(settings))
    found = meeting(costs, type(net).__name__, 1, _counts(costs, settings.num_tokens), speedup=wanted)
    return [_chosen(placement, wanted) for placement in found[:count]]


def _method(settings: PlacementSettings) -> ReducerName:
    return settings.reducer or "patchmerger"


def _wanted(settings: PlacementSettings) -> float:
    return 2.0 if settings.speedup is None else settings.speedup


def _counts(costs: PlacementCosts, num_tokens: int | None) -> list[int]:
    """The numbers of tokens to choose from."""
    patches = costs.num_patches
    least = min(8, max(1, patches // 4))
    return [num_tokens] if num_tokens is not None else [n for n in _COUNTS if least <= n < patches] or [1]


def _inside(reducer: ReducerName) -> int:
    """How many blocks after the last whole one a method works: 1 where it does so inside of a block."""
    return 1 if all_work_inside(reducer) else 0


def _costs(net: nn.Module, positions: Positions | None, reducer: ReducerName) -> PlacementCosts:
    return PlacementCosts(on_meta(net), None, positions, reducer, earliest=1 + _inside(reducer))


def _chosen(placement: Placement, wanted: float, measured: float | None = None) -> ChosenPlacement:
    return ChosenPlacement(
        placement.after[0] - _inside(placement.reducer), placement.num_tokens[0], placement.positions,
        placement.speedup, measured, wanted, placement.reducer,
    )  # fmt: skip


def _given(net: nn.Module, settings: PlacementSettings, after: int, num_tokens: int) -> ChosenPlacement:
    reducer = _method(settings)
    costs = _costs(net, settings.positions, reducer)
    if not 1 <= after < costs.depth:
        raise ValueError(f"after ({after}) must be a block from 1 to {costs.depth - 1}: the model has {costs.depth}")
    if not 1 <= num_tokens < costs.num_patches:
        raise ValueError(
            f"num_tokens ({num_tokens}) must be from 1 to {costs.num_patches - 1}: {costs.num_patches} patches arrive"
        )
    placement = costs.placement([after + _inside(reducer)], [num_tokens])
    return ChosenPlacement(after, num_tokens, placement.positions, placement.speedup, reducer=reducer)


def slower_but_safer(net: nn.Module, placement: ChosenPlacement) -> list[str]:
    """Placements that change the model less, in words, with the speed-up that they predict."""
    costs, inside = _costs(net, placement.positions, placement.reducer), _inside(placement.reducer)
    found = []
    if placement.after + 1 < costs.depth:
        later = costs.placement([placement.after + 1 + inside], [placement.num_tokens])
        found.append(
            f"a later merge (--after {placement.after + 1} --num_tokens {placement.num_tokens}: {later.speedup:.2f}×)"
        )
    if 2 * placement.num_tokens < costs.num_patches:
        more = costs.placement([placement.after + inside], [2 * placement.num_tokens])
        found.append(
            f"more tokens (--after {placement.after} --num_tokens {2 * placement.num_tokens}: {more.speedup:.2f}×)"
        )
    return found
