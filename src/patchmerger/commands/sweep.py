"""``patchmerger sweep``: a grid of mergers, each trained alike, against the plain model."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import StudyOptions
from patchmerger.data.settings import DataSettings
from patchmerger.runs.narrowing import narrowed
from patchmerger.studies.settings import SweepSettings


@dataclass(frozen=True)
class Command(StudyOptions, SweepSettings):
    """Train a merger for every block and number of tokens, and compare accuracy, cost and measured speed.

    The same command again resumes an interrupted run, and tries again what failed. Several processes of the same
    command share the work, on one machine or on several that see the same folder. With no options: nine mergers and
    the plain model on the built-in digits, some ten minutes on two cores.

    Args:
        shard: "1/2" trains the first of two parts, for machines that do not see one folder; the command without it
            makes the table once the folders are put together.
    """

    shard: str | None = None
    data: DataSettings = DataSettings()

    def run(self, command: str) -> int:
        """Train the grid, and show the table; the status is 1 where a cell failed."""
        from patchmerger.reports.sweep import report
        from patchmerger.studies.merger_sweep import sweep

        results = sweep(
            narrowed(self, SweepSettings),
            shard=self.shard,
            out=self.out,
            reuse=self.reuse,
            command=command,
            progress=self.progress,
        )
        return report(results)
