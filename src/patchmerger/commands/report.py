"""``patchmerger report``: saved results as one HTML page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

SOME_UNREAD = 1


@dataclass(frozen=True)
class Command:
    """Write saved results as one HTML file, for those who decide and those who check.

    The file holds all that it needs and opens without a network: the verdict with its numbers, where the model merges,
    accuracy against speed, training curves, tables that sort, merge maps, and folded away settings, versions, device,
    seeds and commands. Results are read, never computed anew. What cannot be shown is named in the page and on standard
    error; the exit status is then 1.

    Args:
        folders: Folders of compare, transfer, sweep, accelerate, accelerate-study, place-study, demo, fit and show;
            JSON files of bench, patterns, fewshot, hosts and export; or folders that hold some of these.
        out: The file to write; complete or not at all.
        title: Its heading.
        overwrite: Replace that file if it exists.
    """

    folders: list[str]
    out: Path = Path("report.html")
    title: str = "PatchMerger report"
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Write the page; 1 where something could not be shown."""
        from patchmerger.reports.html.page import write_report

        report = write_report(self.folders, self.out, title=self.title, overwrite=self.overwrite)
        for each in report.unread:
            print(f"not shown: {each}", file=sys.stderr)
        results = f"{len(report.shown)} results" if len(report.shown) > 1 else report.shown[0]
        print(f"{report.path}: {results}, {report.path.stat().st_size / 1e6:.1f} MB")
        return SOME_UNREAD if report.unread else 0
