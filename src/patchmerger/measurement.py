"""What was measured: the numbers, as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from patchmerger.costs import table_text
from patchmerger.timed_steps import Precision


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
        peak_memory: Bytes on the GPU at most, in its step alone with its weights; ``None`` on other devices.
        round_seconds: Seconds of a batch in each round.
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

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline: 1 / ``ratio``."""
        return 1 / self.ratio


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
        compile: Whether the models were compiled.
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
    compile: bool
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

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        record = json.loads(json.dumps(asdict(self)))
        for timing, entry in zip(self.timings, record["timings"], strict=True):
            entry["speedup"] = timing.speedup
        return {**record, "rounds": self.rounds}

    def __str__(self) -> str:
        """A table with a row for each model, and what it was measured on."""
        from rich.table import Table

        height, width = self.image_size
        what = "Training step" if self.training else "Inference"
        table = Table(title=f"{what}, batch of {self.batch_size}, {height} × {width} pixels, {self.precision}")
        table.add_column("model")
        columns = ["ms / batch", "images/s", f"time / {self.baseline} (quartiles)", "speed-up", "predicted", "peak MiB"]
        with_memory = any(timing.peak_memory is not None for timing in self.timings)
        for column in columns if with_memory else columns[:-1]:
            table.add_column(column, justify="right")
        for t in self.timings:
            quartiles = " … ".join(f"{quartile:.3f}" for quartile in t.ratio_quartiles)
            cells = [t.name, f"{t.seconds * 1e3:.2f}", f"{t.images_per_second:,.1f}", f"{t.ratio:.3f} ({quartiles})"]
            cells += [f"{t.speedup:.2f}×", f"{t.predicted_speedup:.2f}×" if t.predicted_speedup else "unknown"]
            table.add_row(*cells, *([f"{(t.peak_memory or 0) / 2**20:,.0f}"] if with_memory else []))
        where = self.environment
        return table_text(table) + (
            f"median of {self.rounds} rounds{' (interrupted)' if self.interrupted else ''}, models in turn, "
            f"on {where['device_name']}, {where['threads']} threads, torch {where['torch']}, timm {where['timm']}"
            f"{', compiled' if self.compile else ''}"
        )


@dataclass(frozen=True)
class Bench:
    """A timm model with and without a merger, measured.

    Attributes:
        model: Its timm name.
        num_tokens: Tokens that each merger gives.
        after: The blocks that the mergers stand after, counted from 1.
        inference: Inference measured, or ``None``.
        training: A training step measured, or ``None``.
        command: The command that measures this again.
    """

    model: str
    num_tokens: tuple[int, ...]
    after: tuple[int, ...]
    inference: Measurement | None
    training: Measurement | None
    command: str

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return {
            "schema": 1,
            "command": self.command,
            "model": self.model,
            "num_tokens": list(self.num_tokens),
            "after": list(self.after),
            "inference": self.inference and self.inference.as_dict(),
            "training": self.training and self.training.as_dict(),
        }

    def __str__(self) -> str:
        """The tables, with the model and its mergers above them."""
        places = ", ".join(f"{m} tokens after block {a}" for m, a in zip(self.num_tokens, self.after, strict=True))
        tables = [str(table) for table in (self.inference, self.training) if table is not None]
        return "\n\n".join([f"{self.model}, merged: {places}", *tables])
