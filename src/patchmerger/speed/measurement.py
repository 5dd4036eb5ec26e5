"""Measured speed of several models side by side, fair on a noisy machine: interleaved, and compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from patchmerger.costs.model_cost import known_flops
from patchmerger.hosts.example_inputs import image_size_of, size_in
from patchmerger.hosts.state import unsupported_state
from patchmerger.runs.environment import clock, environment, find_device
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import quartiles
from patchmerger.runs.text import text_table
from patchmerger.speed.settings import Compile, Precision, TimingSettings, compile_name
from patchmerger.speed.timed_steps import TimedStep, interleaved, timed_step

# Below so many rounds, or where the quartiles lie further apart than this share of the median, a ratio is uncertain.
_ENOUGH_ROUNDS, _WIDE = 5, 0.2


@dataclass(frozen=True)
class Timing:
    """What was measured of one model.

    Attributes:
        name: The model's name in the comparison.
        seconds: Median seconds of a batch, over the rounds.
        images_per_second: Batch size / ``seconds``.
        ratio: Median over the rounds of its time / the baseline's time in the same round.
        ratio_quartiles: First and third quartile of these ratios.
        predicted_speedup: The baseline's FLOPs / its FLOPs; ``None`` where ``cost`` does not know a model.
        params: Its parameters.
        peak_memory: Bytes at most, in its step alone, with weights, gradients and optimiser state; ``None`` where the
            device does not tell.
        round_seconds: Seconds of a batch in each round.
        activation_memory: Bytes of activations at most: ``peak_memory`` less what is held throughout.
        roofline_speedup: The speed-up that a roofline allows; ``None`` where it was not asked for.
    """

    name: str
    seconds: float
    images_per_second: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    predicted_speedup: float | None
    params: int
    peak_memory: int | None
    round_seconds: tuple[float, ...]
    activation_memory: int | None = None
    roofline_speedup: float | None = None

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline: 1 / ``ratio``."""
        return 1 / self.ratio

    @property
    def speedup_quartiles(self) -> tuple[float, float]:
        """First and third quartile of the speed-up."""
        low, high = self.ratio_quartiles
        return 1 / high, 1 / low

    @property
    def uncertain(self) -> str | None:
        """Why the speed-up is not to be relied on, in a few words; ``None`` where it is."""
        if len(self.round_seconds) < _ENOUGH_ROUNDS:
            return f"only {len(self.round_seconds)} rounds"
        low, high = self.ratio_quartiles
        return "wide quartiles" if high - low > _WIDE * self.ratio else None

    @property
    def of_predicted(self) -> float | None:
        """Attained speed-up / that predicted by FLOPs."""
        return self.speedup / self.predicted_speedup if self.predicted_speedup else None

    @property
    def of_roofline(self) -> float | None:
        """Attained speed-up / that allowed by the roofline."""
        return self.speedup / self.roofline_speedup if self.roofline_speedup else None


@dataclass(frozen=True)
class Measurement:
    """Models measured side by side.

    Attributes:
        timings: One for each model, in the order given.
        baseline: The name of the model that the others are compared with.
        batch_size: Images in a batch.
        image_size: Height and width in pixels.
        training: Whether a training step was measured, or inference.
        precision: ``"float32"``, ``"bf16"`` or ``"fp16"``.
        compile: Whether the models were compiled, or ``"frozen"``.
        warmup: Untimed steps of each model before the first round.
        interrupted: Whether fewer rounds ran than were asked for.
        environment: Device, threads and versions.
    """

    timings: tuple[Timing, ...]
    baseline: str
    batch_size: int
    image_size: tuple[int, int]
    training: bool
    precision: Precision
    compile: Compile
    warmup: int
    interrupted: bool
    environment: dict[str, Any]

    @property
    def rounds(self) -> int:
        """Rounds that were measured: the n of every median."""
        return len(self.timings[0].round_seconds)

    def __getitem__(self, name: str) -> Timing:
        """The timing of one model, by its name."""
        for timing in self.timings:
            if timing.name == name:
                return timing
        raise KeyError(f"{name!r} was not measured; there are {', '.join(t.name for t in self.timings)}")

    def speedup_over(self, name: str, other: str) -> tuple[float, tuple[float, float]]:
        """How many times faster ``name`` is than ``other``: median of the ratios within the rounds, and quartiles."""
        low, middle, high = quartiles(np.divide(self[other].round_seconds, self[name].round_seconds))
        return middle, (low, high)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        record = to_json(self)
        for timing, entry in zip(self.timings, record["timings"], strict=True):
            entry["speedup"] = timing.speedup
            entry["uncertain"] = timing.uncertain
            entry["of_predicted"], entry["of_roofline"] = timing.of_predicted, timing.of_roofline
        return {**record, "rounds": self.rounds}

    def __str__(self) -> str:
        """A table with a row for each model, and what it was measured on."""
        height, width = self.image_size
        what = "Training step" if self.training else "Inference"
        with_memory = any(timing.peak_memory is not None for timing in self.timings)
        memory = ["peak MiB"] if with_memory else []
        rows = [("model", "ms / batch", "images/s", "speed-up (quartiles)", "predicted", *memory)]
        for t in self.timings:
            low, high = t.speedup_quartiles
            cells = [t.name, f"{t.seconds * 1e3:.2f}", f"{t.images_per_second:,.1f}"]
            cells += [f"{t.speedup:.2f}× ({low:.2f} … {high:.2f})"]
            cells += [f"{t.predicted_speedup:.2f}×" if t.predicted_speedup else "unknown"]
            rows.append((*cells, *([f"{(t.peak_memory or 0) / 2**20:,.0f}"] if with_memory else [])))
        title = f"{what}, batch of {self.batch_size}, {height} × {width} pixels, {self.precision}"
        uncertain = [f"uncertain: {t.name} ({t.uncertain})" for t in self.timings if t.uncertain]
        return "\n".join([title, text_table(rows), *uncertain, self.conditions])

    @property
    def conditions(self) -> str:
        """How and on what it was measured, in one line."""
        where = self.environment
        return (
            f"median of {self.rounds} rounds{' (interrupted)' if self.interrupted else ''}, interleaved, "
            f"on {where['device_name']}, {where['threads']} threads, torch {where['torch']}, timm {where['timm']}"
            f"{f', {compile_name(self.compile)}' if self.compile else ''}"
        )


def measure(
    models: Mapping[str, nn.Module],
    settings: TimingSettings = TimingSettings(),
    *,
    image_size: int | tuple[int, int] | None = None,
    baseline: str | None = None,
    least_seconds: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure the time of a batch for several models, on random images, with ``torch.utils.benchmark.Timer``.

    In every round each model is timed once, in an order that rotates, and is compared with the baseline in the same
    round: what slows the machine down for a while slows both. The models are not changed; copies run.

    Inference runs in eval mode, on a copy cast to the precision. A training step is forward, cross-entropy on
    random labels, backward, AdamW (fused where there is such a kernel) and ``zero_grad``; weights stay float32,
    ``"bf16"`` and ``"fp16"`` run under autocast, ``"fp16"`` with a gradient scaler.

    With ``compile`` the copies are compiled whole (:func:`patchmerger.speed.compiled`). What this process compiled
    before is dropped first (``torch.compiler.reset``), lest torch's limit on recompilation is reached.

    Args:
        models: Models by name.
        settings: Batch, number format, rounds, device.
        image_size: Pixels, one number or (height, width); the copies' input size is set to it. ``None`` is the
            baseline's own.
        baseline: The name of the model to compare with; ``None`` is the first.
        least_seconds: Of each model, the time of a batch that a roofline allows; see ``patchmerger.speed.roofline``.
        progress: Called with the rounds done and the rounds in all; ``None`` shows a bar, on a terminal only.

    Returns:
        The measurement. An interrupt (Ctrl-C) after at least 3 rounds gives what was measured so far.

    Raises:
        ValueError: An unknown baseline, one model under two names, a device that is not there, a model that is
            quantised, offloaded or on the meta device, an image size that does not fit, or a model that cannot be
            trained with cross-entropy.
    """
    baseline = _check_models(models, baseline)
    first = next(models[baseline].parameters(), torch.empty(0))
    device = find_device(first.device if settings.device is None else settings.device)
    sizes = _sizes(models, baseline, image_size)
    flops = {name: known_flops(model, sizes[name]) for name, model in models.items()}
    if settings.compile:
        torch.compiler.reset()

    steps: dict[str, TimedStep] = {}
    memory: dict[str, tuple[int | None, int | None]] = {}
    for name, model in models.items():
        steps[name] = timed_step(name, model, settings, sizes[name], device)
        for _ in range(settings.warmup):
            steps[name]()
        memory[name] = steps[name].memory(device)

    times, interrupted = _time(steps, settings, device, progress)
    timings = []
    for name, model in models.items():
        low, ratio, high = quartiles(np.divide(times[name], times[baseline]))
        seconds = quartiles(times[name])[1]
        own, other = flops[name], flops[baseline]
        timings.append(
            Timing(
                name=name,
                seconds=seconds,
                images_per_second=settings.batch_size / seconds,
                ratio=ratio,
                ratio_quartiles=(low, high),
                predicted_speedup=other / own if own and other else None,
                roofline_speedup=least_seconds[baseline] / least_seconds[name] if least_seconds else None,
                params=sum(p.numel() for p in model.parameters()),
                peak_memory=memory[name][0],
                activation_memory=memory[name][1],
                round_seconds=tuple(times[name]),
            )
        )
    return Measurement(
        timings=tuple(timings),
        baseline=baseline,
        batch_size=settings.batch_size,
        image_size=sizes[baseline] or image_size_of(models[baseline]),
        training=settings.training,
        precision=settings.precision,
        compile=settings.compile,
        warmup=settings.warmup,
        interrupted=interrupted,
        environment=environment(device),
    )


def _time(
    steps: Mapping[str, TimedStep],
    settings: TimingSettings,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[float]], bool]:
    """Seconds of a step in each round, by name, and whether the rounds were cut short."""
    from torch.utils.benchmark import Timer  # slow to import, and may log about CUDA

    options: dict[str, Any] = {"timer": clock(device), "num_threads": torch.get_num_threads()}
    timers = {name: Timer("step()", globals={"step": step}, **options) for name, step in steps.items()}

    def time_once(name: str) -> float:
        return float(timers[name].blocked_autorange(min_run_time=settings.round_seconds).median)

    return interleaved(list(steps), settings.rounds, time_once, progress)


def _sizes(
    models: Mapping[str, nn.Module], baseline: str, image_size: int | tuple[int, int] | None
) -> dict[str, tuple[int, int] | None]:
    """The image size to give to each model; ``None`` where it is the model's own and nothing else was asked for."""
    if (size := size_in(image_size)) is not None:
        return dict.fromkeys(models, size)
    own = image_size_of(models[baseline])
    return {name: None if _own_size(model) == own else own for name, model in models.items()}


def _own_size(model: nn.Module) -> tuple[int, int] | None:
    try:
        return image_size_of(model)
    except ValueError:  # a model that does not say its size takes that of the baseline
        return None


def _check_models(models: Mapping[str, nn.Module], baseline: str | None) -> str:
    if not models:
        raise ValueError("models is empty: give at least one model by name")
    baseline = next(iter(models)) if baseline is None else baseline
    if baseline not in models:
        raise ValueError(f"baseline ({baseline!r}) must be one of the models: {', '.join(models)}")
    first: dict[int, str] = {}
    for name, model in models.items():
        if (other := first.setdefault(id(model), name)) != name:
            raise ValueError(
                f"models[{name!r}] is the same object as models[{other!r}], which is as fast as itself: insert and "
                "remove change a model in place, so give one of them a copy (copy.deepcopy)"
            )
        if (state := unsupported_state(model)) is not None:
            raise ValueError(f"models[{name!r}] cannot be measured: {'; '.join(state)}")
    return baseline
