"""Where to merge for a wanted speed-up or a FLOP budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.costs.budget import flops_within, meeting
from patchmerger.costs.counting import on_meta
from patchmerger.costs.placements import Placement, PlacementCosts
from patchmerger.insertion.inserted import mergers as inserted
from patchmerger.mechanism.options import Positions
from patchmerger.models.build import find_untrained
from patchmerger.models.finding import FoundModel
from patchmerger.reducers.names import METHODS, ReducerName, check_reducer_name
from patchmerger.runs.checks import check_count
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.text import significant, text_table
from patchmerger.speed.measurement import Measurement
from patchmerger.speed.measurement import measure as measure_speed
from patchmerger.speed.settings import TimingSettings


@dataclass(frozen=True)
class Plan:
    """Placements of mergers that meet a budget, the one to try first at the front.

    Attributes:
        model: The model's name.
        image_size: Height and width in pixels.
        plain_flops: FLOPs of one image without mergers.
        budget: FLOPs of one image that no placement exceeds.
        speedup: The wanted speed-up, where one was asked for rather than FLOPs.
        placements: The latest first, then those with more tokens.
        measured: The plain model and the first placements, measured; ``None`` if that was not asked for.
    """

    model: str
    image_size: tuple[int, int]
    plain_flops: int
    budget: float
    speedup: float | None
    placements: tuple[Placement, ...]
    measured: Measurement | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        placements = [{**to_json(placement), "line": placement.line} for placement in self.placements]
        return {**to_json(self), "placements": placements, "measured": self.measured and self.measured.as_dict()}

    def __str__(self) -> str:
        """A table of the placements, and the line that makes the first."""
        height, width = self.image_size
        wanted = f"{self.budget / 1e9:g} GFLOPs" if self.speedup is None else f"{self.speedup:g}× fewer FLOPs"
        header = ("after block", "tokens", "GFLOPs", "predicted", *(["measured (quartiles)"] if self.measured else []))
        rows = [header]
        for p in self.placements:
            after, tokens = (", ".join(map(str, numbers)) for numbers in (p.after, p.num_tokens))
            measured = [_measured_text(self.measured, p)] if self.measured else []
            rows.append((after, tokens, significant(p.flops / 1e9, 4), f"{p.speedup:.2f}×", *measured))
        method = METHODS[self.placements[0].reducer]
        what = "a merger" if self.placements[0].reducer == "patchmerger" else method.title
        training = f"; {what} in a trained model must be trained" if method.learned else ""
        plain = f"{significant(self.plain_flops / 1e9, 4)} GFLOPs"
        lines = [
            f"{self.model}, {height} × {width} pixels, {plain}: {wanted} or better",
            text_table(rows),
            f"later is safer, and so are more tokens{training}",
            f"the first: {self.placements[0].line}",
        ]
        return "\n".join(lines + ([self._verdict(self.measured)] if self.measured else []))

    def _verdict(self, measured: Measurement) -> str:
        """What the measurement says of the wanted speed-up."""
        timings = [t for t in measured.timings if t.name != measured.baseline]
        wanted = self.speedup or self.plain_flops / self.budget
        reach = sum(t.speedup >= wanted for t in timings)
        verdict = f"measured, {reach} of {len(timings)} reach {wanted:.2f}×; {measured.conditions}"
        if slower := [t.name for t in timings if t.speedup < 1]:
            verdict += f"\nslower than the plain model here: {'; '.join(slower)}"
        return verdict


def _measured_text(measured: Measurement | None, placement: Placement) -> str:
    timing = next((t for t in measured.timings if t.name == placement.line), None) if measured else None
    if timing is None:
        return "–"
    slow, fast = timing.speedup_quartiles
    return f"{timing.speedup:.2f}× ({slow:.2f} … {fast:.2f})"


def plan(
    model: str | Path | nn.Module | FoundModel,
    *,
    speedup: float | None = None,
    gflops: float | None = None,
    mergers: int = 1,
    num_tokens: Sequence[int] | None = None,
    image_size: int | tuple[int, int] | None = None,
    positions: Positions | None = None,
    reducer: ReducerName = "patchmerger",
    limit: int = 10,
    measure: int = 0,
    timing: TimingSettings = TimingSettings(rounds=10),
) -> Plan:
    """Find where to merge for a wanted speed-up, or to stay within a budget of FLOPs.

    Listed are the placements that change the model least: none stands in the list to which another is preferable
    because it merges as late and keeps as many tokens. Nothing runs unless ``measure`` asks for it.

    Args:
        model: A plain model, or where it is found: a timm architecture, a folder, a Hub name, or what
            :func:`~patchmerger.models.find_model` gave.
        speedup: Wanted speed-up, predicted by FLOPs: those of the plain model divided by those of the merged one.
            2 if neither this nor ``gflops`` is given.
        gflops: In its place a budget: GFLOPs (10⁹, a multiply-add is 2) for one image.
        mergers: One merger, or two.
        num_tokens: Numbers of tokens to choose from; by default powers of two from 8 (less where there are few
            patches) to 128.
        image_size: Pixels, one number or (height, width); the model's own by default.
        positions: As in ``insert``; by default what the model needs.
        reducer: The method, such as "tome"; one that works inside a block is placed inside of block ``after``.
        limit: How many placements to list.
        measure: How many of the first ones to measure on this machine, beside the plain model.
        timing: How to measure.

    Returns:
        The placements, with the line of Python for each.

    Raises:
        ValueError: No placement meets the budget: the message names the nearest that can be had. Or an argument
            that cannot work.
        UnsupportedModelError: The model cannot take a merger.
    """
    _check(speedup=speedup, gflops=gflops, mergers=mergers, limit=limit, measure=measure)
    check_reducer_name(reducer)
    found_model = find_untrained(model, image_size=image_size)
    name, known = found_model.name, found_model.model
    if inserted(known):
        raise ValueError(f"model ({name}) has a merger already: patchmerger.remove(model) takes it out")
    costs = PlacementCosts(on_meta(known), image_size, positions, reducer)
    if mergers >= costs.depth:
        raise ValueError(f"mergers ({mergers}) must be fewer than the {costs.depth} blocks of {name}")
    counts = _counts(costs, num_tokens, mergers)
    if speedup is None and gflops is None:
        speedup = 2.0
    found = meeting(costs, name, mergers, counts, speedup=speedup, gflops=gflops)
    measured = None
    if measure:
        known = find_untrained(model, image_size=image_size, seed=timing.seed).model
        measured = measure_speed(
            {"plain": known, **{p.line: p.apply(copy.deepcopy(known)) for p in found[: min(measure, limit)]}},
            timing,
            image_size=image_size,
        )
    cost = costs.cost
    budget = flops_within(costs, speedup, gflops)
    return Plan(name, cost.image_size, cost.flops, budget, speedup, tuple(found[:limit]), measured)


def _counts(costs: PlacementCosts, num_tokens: Sequence[int] | None, mergers: int) -> list[int]:
    """The numbers of tokens to choose from: those asked for, checked, or those that there are enough patches for."""
    if num_tokens is None:  # the paper has 8
        least = min(3, (costs.num_patches // 4).bit_length() - 1)
        counts = [2**power for power in range(max(0, least), 8) if 2**power < costs.num_patches] or [1]
    else:
        counts = list(num_tokens)
    if not counts or any(type(count) is not int or not 1 <= count < costs.num_patches for count in counts):
        raise ValueError(
            f"num_tokens ({counts}) must be whole numbers from 1 to {costs.num_patches - 1}: "
            f"{costs.num_patches} patches arrive"
        )
    if len(set(counts)) < mergers:
        raise ValueError(f"num_tokens ({counts}) must be at least {mergers} numbers for {mergers} mergers")
    return counts


def _check(*, speedup: float | None, gflops: float | None, mergers: int, limit: int, measure: int) -> None:
    if speedup is not None and gflops is not None:
        raise ValueError(f"speedup ({speedup:g}) and gflops ({gflops:g}) are two budgets: give one of them")
    if speedup is not None and not speedup > 1:
        raise ValueError(f"speedup ({speedup:g}) must be above 1, the speed of the plain model")
    if gflops is not None and not gflops > 0:
        raise ValueError(f"gflops ({gflops:g}) must be above 0")
    if mergers not in (1, 2):
        raise ValueError(f"mergers ({mergers}) must be 1 or 2")
    check_count("limit", limit)
    if measure < 0:
        raise ValueError(f"measure ({measure}) must be 0 or the number of placements to measure")
