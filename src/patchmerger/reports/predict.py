"""What ``patchmerger predict`` prints and writes: a table, CSV, or one JSON object a line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TextIO, TypeAlias

from patchmerger.prediction.outcomes import BadImage, Prediction
from patchmerger.reports.parts import cells
from patchmerger.reports.parts.numbers import counted
from patchmerger.reports.parts.tables import Cell, Table, print_table, report_console

Format: TypeAlias = Literal["table", "csv", "jsonl"]
_LEAST_OF_A_PATH = 20
_OTHER_COLUMNS = 22  # characters of a table beside paths and classes


def show_predictions(predictions: Sequence[Prediction]) -> None:
    """Print a table: each image with its classes below each other, best first; of a long path the end."""
    console = report_console()
    longest = max([len("class"), *(len(found.name) for one in predictions for found in one.classes)])
    width = max(_LEAST_OF_A_PATH, console.width - longest - _OTHER_COLUMNS)
    rows = [
        [Cell("" if rank else _ending(one.image, width)), Cell(found.name), cells.percent(found.probability, 1)]
        for one in predictions
        for rank, found in enumerate(one.classes)
    ]
    if rows:
        print_table(console, Table("", ["image", "class", "probability,\n%"], rows, keys=2))


def write_csv(file: TextIO, predictions: Iterable[Prediction]) -> None:
    """Write a row an image, as they come: ``image, class_1, probability_1, …``, or ``image, feature_0, …``."""
    rows = csv.writer(file, lineterminator="\n")
    for number, prediction in enumerate(predictions):
        values = list(_values(prediction))
        if number == 0:
            rows.writerow(["image", *(name for name, _ in values)])
        rows.writerow([prediction.image, *(value for _, value in values)])


def write_json_lines(file: TextIO, predictions: Iterable[Prediction]) -> None:
    """Write an object an image, one a line, as they come: with ``classes``, or with ``features``."""
    for prediction in predictions:
        record: dict[str, object] = {"image": prediction.image}
        if prediction.features is None:
            record["classes"] = [
                {"name": found.name, "index": found.index, "probability": _rounded(found.probability)}
                for found in prediction.classes
            ]
        else:
            record["features"] = [_rounded(value, 9) for value in prediction.features.tolist()]
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def report_bad_images(bad: Sequence[BadImage], count: int) -> None:
    """Print on standard error which of ``count`` images could not be read, and why."""
    for image in bad:
        print(image, file=sys.stderr)
    if bad:
        print(f"{len(bad)} of {counted(count, 'image')} could not be read; passed over", file=sys.stderr)


def _ending(path: str, width: int) -> str:
    """A path, or where it is longer than ``width`` characters its end: the name of the file says most."""
    return path if len(path) <= width else f"…{path[1 - width :]}"


def _values(prediction: Prediction) -> Iterator[tuple[str, str | float]]:
    """Names of columns, and what stands in them."""
    for rank, found in enumerate(prediction.classes, start=1):
        yield f"class_{rank}", found.name
        yield f"probability_{rank}", _rounded(found.probability)
    if prediction.features is not None:
        for place, value in enumerate(prediction.features.tolist()):
            yield f"feature_{place}", _rounded(value, 9)


def _rounded(value: float, digits: int = 6) -> float:
    """To so many significant digits; with 9 a float32 can be read back as it was."""
    return float(f"{value:.{digits}g}")
