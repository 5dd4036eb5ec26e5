"""What was measured: the numbers, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from patchmerger.runs.text_table import text_table
from patchmerger.speed.compiling import compile_name
from patchmerger.speed.options import Compile, Precision


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
        roofline_speedup: The speed-up that a roofline allows; ``None`` where no ceilings were given.
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
        pairs = zip(self[other].round_seconds, self[name].round_seconds, strict=True)
        ratios = torch.tensor([theirs / ours for theirs, ours in pairs], dtype=torch.float64)
        low, middle, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        return middle, (low, high)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        record = json.loads(json.dumps(asdict(self)))
        for timing, entry in zip(self.timings, record["timings"], strict=True):
            entry["speedup"] = timing.speedup
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
        return f"{title}\n{text_table(rows)}\n{self.conditions}"

    @property
    def conditions(self) -> str:
        """How and on what it was measured, in one line."""
        where = self.environment
        return (
            f"median of {self.rounds} rounds{' (interrupted)' if self.interrupted else ''}, models in turn, "
            f"on {where['device_name']}, {where['threads']} threads, torch {where['torch']}, timm {where['timm']}"
            f"{f', {compile_name(self.compile)}' if self.compile else ''}"
        )
