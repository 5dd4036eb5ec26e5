"""Where the time of a forward pass goes: patch embedding, blocks before, merger, blocks after, head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from torch import nn

from patchmerger.costs.model_cost import cost
from patchmerger.hosts import block_names, find_host
from patchmerger.hosts.example_inputs import example_input, fit_to_size
from patchmerger.inserted import mergers
from patchmerger.runs.environment import environment
from patchmerger.speed.options import Precision
from patchmerger.speed.timed_steps import DTYPES


@dataclass(frozen=True)
class Stage:
    """A part of a forward pass.

    Attributes:
        name: ``"patch embedding"``, ``"blocks 1–6"``, ``"merger after 6"`` (with the tokens that pass by it), and
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
        """What the stage makes of the device."""
        return self.flops / self.seconds


def measure_stages(
    models: Mapping[str, nn.Module],
    *,
    batch_size: int,
    image_size: int | tuple[int, int] | None = None,
    precision: Precision = "float32",
    rounds: int = 20,
    warmup: int = 3,
    device: torch.device,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[Stage]]:
    """Measure the stages of forward passes, not compiled; the models take turns.

    Hooks on a copy of each model take the time at its blocks and mergers, on a GPU by events on its stream. Models
    without a merger are split at the same blocks.

    Args:
        models: Models by name; at least one with a merger.
        batch_size: Images in a batch.
        image_size: Pixels; ``None`` is the models' own.
        precision: Of weights and activations.
        rounds: How often each model runs.
        warmup: Untimed runs of each model before.
        device: Where.
        seed: Of the random images.
        progress: Called with the rounds done and the rounds in all.

    Returns:
        The stages of each model, in order.
    """
    places = next(([m.after for m in found] for model in models.values() if (found := mergers(model))), [])
    runs = {}
    for name, model in models.items():
        clone = fit_to_size(copy.deepcopy(model).eval(), image_size).to(device=device, dtype=DTYPES[precision])
        runs[name] = _Run(clone, places, device)
    batches = {n: example_input(run.model, image_size, batch_size=batch_size, seed=seed) for n, run in runs.items()}
    names = list(models)
    with torch.inference_mode():
        for name in names:
            for _ in range(warmup):
                runs[name].seconds(batches[name])
        times: dict[str, list[list[float]]] = {name: [] for name in names}
        for done in range(rounds):
            first = done % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(runs[name].seconds(batches[name]))
            if progress is not None:
                progress(done + 1, rounds)
    return {name: _stages(runs[name], models[name], image_size, batch_size, times[name]) for name in names}


def stages_record(stages: Mapping[str, list[Stage]], rounds: int, warmup: int, device: torch.device) -> dict[str, Any]:
    """As plain Python values, for JSON."""
    return {
        "models": {
            name: [{**vars(stage), "flops_per_second": stage.flops_per_second} for stage in found]
            for name, found in stages.items()
        },
        "rounds": rounds,
        "warmup": warmup,
        "environment": environment(device),
    }


class _Run:
    """A model with hooks that take the time at the borders of its stages."""

    def __init__(self, model: nn.Module, places: list[int], device: torch.device) -> None:
        self.model, self.device = model, device
        self.marks: list[Any] = []
        blocks = find_host(model).blocks
        inserted = {m.after: m.module for m in mergers(model)}
        self.names, begin = ["patch embedding"], 1
        blocks[0].register_forward_pre_hook(partial(self._mark_before))
        for place in places:
            self.names.append(_blocks_name(begin, place))
            if place in inserted:
                inserted[place].register_forward_pre_hook(self._mark_before)
                self.names.append(f"merger after {place}")
            blocks[place - 1].register_forward_hook(self._mark_after)
            begin = place + 1
        self.names += [_blocks_name(begin, len(blocks)), "head"]
        blocks[-1].register_forward_hook(self._mark_after)

    def seconds(self, batch: Any) -> list[float]:
        """One pass: the seconds of each stage."""
        self.marks.clear()
        self._mark()
        batch.run(self.model)
        self._mark()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]
        return [b - a for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]

    def _mark_before(self, *_: Any) -> None:
        self._mark()

    def _mark_after(self, *_: Any) -> None:
        self._mark()

    def _mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(perf_counter())


def _blocks_name(first: int, last: int) -> str:
    return f"blocks {first}–{last}" if first < last else f"block {first}"


def _stages(
    run: _Run, model: nn.Module, image_size: int | tuple[int, int] | None, batch_size: int, times: list[list[float]]
) -> list[Stage]:
    flops = _flops(run, model, image_size)
    stages = []
    for index, name in enumerate(run.names):
        seconds = [row[index] for row in times]
        quarters = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        share = median(row[index] / sum(row) for row in times)
        stages.append(Stage(name, median(seconds), (quarters[0], quarters[2]), share, batch_size * flops[index]))
    return stages


def _flops(run: _Run, model: nn.Module, image_size: int | tuple[int, int] | None) -> list[int]:
    """FLOPs of one image in each stage."""
    parts = {part.name: part.flops for part in cost(model, image_size).parts}
    names = block_names(model, find_host(model))
    flops = [parts.pop("patch_embed")]
    for stage in run.names[1:-1]:
        first, *last = (int(number) for number in stage.split()[-1].split("–"))
        if stage.startswith("merger"):
            flops.append(parts.pop(f"{names[first - 1]}.merger"))
        else:
            flops.append(sum(parts.pop(name) for name in names[first - 1 : last[0] if last else first]))
    return [*flops, sum(parts.values())]
