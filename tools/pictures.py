"""The pictures of the committed results, drawn again: ``python -m tools.pictures``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.pictures import accelerate_study, bench, compare, patterns, place_study, sweep, transfer
from patchmerger.runs.files import read_json
from tools.merge_maps import draw_maps
from tools.overview import MAPS, draw_overview

RESULTS = Path("results")


DRAWN: dict[str, Callable[[Any, Path], None]] = {
    "compare": compare.draw,
    "sweep": sweep.draw,
    "transfer": transfer.draw,
    "accelerate": accelerate_study.draw,
    "place": place_study.draw,
    "patterns": patterns.draw,
    "show": draw_maps,
}
"""What draws the results of each study."""


def main(arguments: Sequence[str]) -> None:
    """Draw a picture beside every result of a study, and beside those of a benchmark that have one.

    Args:
        arguments: The folder of the results; by default that of this repository.
    """
    folder = Path(arguments[0]) if arguments else RESULTS
    for path in sorted(folder.glob("*.json")):
        results = read_json(path)
        draw = DRAWN.get(results["study"]) if "study" in results else None
        if draw is None and "profiles" in results and path.with_suffix(".png").exists():
            draw = bench.draw  # a benchmark, of which some have a picture
        if draw is not None:
            draw(results, path.with_suffix(".png"))
            print(path.with_suffix(".png"))
    if (folder / MAPS).is_file():
        print(draw_overview(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
