"""The pictures of the committed results, drawn again: ``python -m tools.pictures``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.acceleration_study import draw_accelerations
from patchmerger.reports.comparison import draw_comparison
from patchmerger.reports.sweep import draw_sweep
from patchmerger.reports.transfer import draw_transfer
from patchmerger.runs.files import read_json

RESULTS = Path("results")


def drawing_of(results: dict[str, Any]) -> Callable[[dict[str, Any], Path], None] | None:
    """What draws the results of a study; ``None`` for results of something else."""
    if "places" in results and "curves" in results:
        return draw_accelerations
    if "cells" in results:
        return draw_sweep
    variants = results.get("variants")
    if variants is None:
        return None
    return draw_transfer if "downstream" in results["settings"] else draw_comparison


def main(arguments: Sequence[str]) -> None:
    """Draw a picture beside every result of a study.

    Args:
        arguments: The folder of the results; by default that of this repository.
    """
    folder = Path(arguments[0]) if arguments else RESULTS
    for path in sorted(folder.glob("*.json")):
        results = read_json(path)
        draw = drawing_of(results)
        if draw is not None:
            draw(results, path.with_suffix(".png"))
            print(path.with_suffix(".png"))


if __name__ == "__main__":
    main(sys.argv[1:])
