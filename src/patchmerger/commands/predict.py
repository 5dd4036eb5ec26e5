"""``patchmerger predict``: the classes of images, or their features, by a saved model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.runs.checks import check_counts
from patchmerger.runs.files import atomic_file, check_out
from patchmerger.runs.shared_work import shard_of

if TYPE_CHECKING:
    from patchmerger.prediction.outcomes import BadImage, Prediction

SOME_BAD = 1


@dataclass(frozen=True)
class Command:
    """Predict the classes of images, or give the features that a model makes of them.

    Files that are no images are named on standard error and passed over; the exit status is then 1.

    Args:
        model: The folder of a saved model or of a run, a timm architecture with weights, "owner/name" on the Hub, or a
            file of patchmerger export (.onnx, .pt2, or OpenVINO's folder).
        images: Files or folders; in folders, images are looked for in the folders within too.
        top: Classes an image, best first.
        features: Give the features that the last layer classifies, in place of classes.
        format: "table", "csv" (a row an image) or "jsonl" (a JSON object a line). By default as the ending of out says;
            else "table", and "csv" for features.
        multi_label: Whether an image may have several classes, each with a probability of its own. By default as the
            folder or file of the model says.
        shard: Which share of the images, such as 2/8 for the second of eight.
        preprocessing: How images are prepared, in place of what is known of the model.
        batch_size: Images in a batch.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        workers: Processes that read images; chosen by the number of cores by default.
        out: File to write to, in place of the terminal; complete or not at all.
        overwrite: Replace that file if it exists.
        progress: Show a progress bar, on a terminal.
    """

    model: str
    images: list[str]
    top: int = 5
    features: bool = False
    format: Literal["table", "csv", "jsonl"] | None = None
    multi_label: bool | None = None
    shard: str | None = None
    preprocessing: Preprocessing | None = None
    batch_size: int = 32
    device: str | None = None
    workers: int | None = None
    out: Path | None = None
    overwrite: bool = False
    progress: bool = True

    def run(self, command: str) -> int:
        """Predict, and show or write what was found; 1 where some images could not be read."""
        kind = self._format()
        check_counts(self, "top", "batch_size")
        if self.shard is not None:
            shard_of(self.shard)  # refuses what is none
        check_out(self.out, overwrite=self.overwrite)

        from patchmerger.prediction.pictures import find_pictures
        from patchmerger.prediction.predictor import Predictor
        from patchmerger.reports.predict import (
            report_bad_images,
            show_predictions,
            write_csv,
            write_json_lines,
        )  # fmt: skip

        pictures = find_pictures(self.images, shard=self.shard)
        predictor = Predictor(
            self.model, preprocessing=self.preprocessing, multi_label=self.multi_label, device=self.device
        )
        outcomes = predictor.stream(
            pictures, top=self.top, features=self.features, batch_size=self.batch_size, workers=self.workers,
            progress=self.progress,
        )  # fmt: skip
        bad: list[BadImage] = []
        good = _without_bad(outcomes, bad)
        if kind == "table":
            show_predictions(list(good))
        else:
            with _opened(self.out, new=not self.overwrite) as file:
                {"csv": write_csv, "jsonl": write_json_lines}[kind](file, good)
        if not self.features and predictor.scorer.remark:
            print(f"{self.model}: {predictor.scorer.remark}", file=sys.stderr)
        report_bad_images(bad, len(pictures))
        return SOME_BAD if bad else 0

    def _format(self) -> Literal["table", "csv", "jsonl"]:
        """As asked for, or as the ending of ``out`` says."""
        endings: dict[str, Literal["csv", "jsonl"]] = {".csv": "csv", ".jsonl": "jsonl"}
        ending = None if self.out is None else endings.get(self.out.suffix)
        kind = self.format or ending or ("csv" if self.features else "table")
        if kind == "table" and self.features:
            raise ValueError('format ("table") cannot hold features: take "csv" or "jsonl"')
        if kind == "table" and self.out is not None:
            raise ValueError(f"out ({self.out}) ends neither in .csv nor in .jsonl: name it so, or set format to one")
        return kind


def _without_bad(outcomes: Iterator[Prediction | BadImage], bad: list[BadImage]) -> Iterator[Prediction]:
    """The predictions as they come; what could not be read is added to ``bad``."""
    from patchmerger.prediction.outcomes import Prediction

    for outcome in outcomes:
        if isinstance(outcome, Prediction):
            yield outcome
        else:
            bad.append(outcome)


@contextmanager
def _opened(out: Path | None, *, new: bool) -> Iterator[TextIO]:
    """A file to write to, which appears once all is written; standard output without one.

    With ``new`` it replaces none, not one either that another process has written meanwhile.
    """
    if out is None:
        yield sys.stdout
        return
    with atomic_file(out, new=new) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file
