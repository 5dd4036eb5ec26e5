"""Where the time of a forward pass goes: into patch embedding, blocks before, merger, blocks after, head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from patchmerger.costs.model_cost import Cost, cost
from patchmerger.hosts import block_names, find_host
from patchmerger.hosts.example_inputs import Example, example_input, fit_to_size
from patchmerger.insertion.inserted import mergers
from patchmerger.runs.environment import clock, find_device
from patchmerger.runs.statistics import quartiles
from patchmerger.speed.settings import TimingSettings
from patchmerger.speed.timed_steps import DTYPES, interleaved


@dataclass(frozen=True)
class ForwardPart:
    """A part of a forward pass.

    Attributes:
        name: ``"patch embedding"``, ``"blocks 1–6"``, ``"merger after 6"`` (with the prefix tokens that it keeps), and
            ``"head"`` (all that follows the blocks).
        seconds: Median over the rounds.
        quartiles: First and third quartile of the seconds.
        share: Median over the rounds of its part of the forward pass in the same round.
        flops: Of the batch, 1 multiply-add = 2 FLOPs.
    """

    name: str
    seconds: float
    quartiles: tuple[float, float]
    share: float
    flops: int

    @property
    def flops_per_second(self) -> float:
        """What it makes of the device."""
        return self.flops / self.seconds


def measure_forward_parts(
    models: Mapping[str, nn.Module],
    settings: TimingSettings,
    *,
    image_size: int | tuple[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[ForwardPart]]:
    """Measure the parts of forward passes in inference, not compiled; the models are interleaved.

    Hooks on a copy of each model take the time at its blocks and mergers, on a GPU by events on its stream. Models
    without a merger are split at the same blocks.

    Args:
        models: Models by name; at least one with a merger.
        settings: Batch, number format, rounds, device.
        image_size: Pixels; ``None`` is the models' own.
        progress: Called with the rounds done and the rounds in all; ``None`` shows a bar, on a terminal only.

    Returns:
        The parts of each model, in order.
    """
    device = find_device(settings.device or next(next(iter(models.values())).parameters()).device)
    places = next(([m.after for m in found] for model in models.values() if (found := mergers(model))), [])
    runs, batches = {}, {}
    for name, model in models.items():
        clone = fit_to_size(copy.deepcopy(model).eval(), image_size).to(device=device, dtype=DTYPES[settings.precision])
        runs[name] = _Run(clone, places, device)
        batch = example_input(clone, image_size, batch_size=settings.batch_size, seed=settings.seed)
        batches[name], runs[name].encoder = batch.images_alone(clone)
    with torch.inference_mode():
        for name, run in runs.items():
            for _ in range(settings.warmup):
                run.seconds(batches[name])
        times, interrupted = interleaved(
            list(models), settings.rounds, lambda name: runs[name].seconds(batches[name]), progress
        )
    if interrupted:
        raise KeyboardInterrupt
    return {name: runs[name].parts(times[name], cost(models[name], image_size), settings.batch_size) for name in models}


class _Run:
    """A model with hooks that take the time at the borders of its parts."""

    def __init__(self, model: nn.Module, places: list[int], device: torch.device) -> None:
        self.encoder: nn.Module = model
        self.device = device
        self.clock = clock(device)
        self.marks: list[Any] = []
        host = find_host(model)
        blocks, names = host.blocks, block_names(model, host)
        inserted = {m.after: m for m in mergers(model)}
        # The parts by name: which parts of ``cost`` each of them is.
        self.members, begin = {"patch embedding": ["patch_embed"]}, 1
        blocks[0].register_forward_pre_hook(self._mark_here)
        for place in places:
            self.members[_blocks_name(begin, place)] = list(names[begin - 1 : place])
            if place in inserted:
                inserted[place].module.register_forward_pre_hook(self._mark_here)
                self.members[f"merger after {place}"] = [inserted[place].name]
            blocks[place - 1].register_forward_hook(self._mark_here)
            begin = place + 1
        self.members |= {_blocks_name(begin, len(blocks)): list(names[begin - 1 :]), "head": ["head"]}
        blocks[-1].register_forward_hook(self._mark_here)

    def seconds(self, batch: Example) -> list[float]:
        """One pass: the seconds of each part."""
        self.marks.clear()
        self._mark_here()
        batch.run(self.encoder)
        self._mark_here()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]
        return [b - a for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]

    def parts(self, times: list[list[float]], cost: Cost, batch_size: int) -> list[ForwardPart]:
        flops = {part.name: part.flops for part in cost.parts}
        found = []
        for index, (name, members) in enumerate(self.members.items()):
            seconds = [row[index] for row in times]
            low, middle, high = quartiles(seconds)
            share = median(row[index] / sum(row) for row in times)
            work = batch_size * sum(flops[member] for member in members)
            found.append(ForwardPart(name, middle, (low, high), share, work))
        return found

    def _mark_here(self, *_: Any) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(self.clock())


def _blocks_name(first: int, last: int) -> str:
    return f"blocks {first}–{last}" if first < last else f"block {first}"
