"""The pictures of the committed results, drawn again: ``python -m tools.pictures``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.acceleration_study import draw_accelerations
from patchmerger.reports.comparison import draw_comparison
from patchmerger.reports.patterns import draw_patterns
from patchmerger.reports.placing_study import draw_placing
from patchmerger.reports.speed import draw_speed
from patchmerger.reports.sweep import draw_sweep
from patchmerger.reports.transfer import draw_transfer
from patchmerger.runs.files import read_json
from tools.merge_maps import draw_maps
from tools.overview import MAPS, draw_overview

RESULTS = Path("results")


DRAWN: dict[str, Callable[[Any, Path], None]] = {
    "compare": draw_comparison,
    "sweep": draw_sweep,
    "transfer": draw_transfer,
    "accelerate": draw_accelerations,
    "place": draw_placing,
    "patterns": draw_patterns,
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
            draw = draw_speed  # a benchmark, of which some have a picture
        if draw is not None:
            draw(results, path.with_suffix(".png"))
            print(path.with_suffix(".png"))
    if (folder / MAPS).is_file():
        print(draw_overview(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
