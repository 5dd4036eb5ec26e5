"""``patchmerger compare``: the same ViT with and without a merger, trained alike."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import StudyOptions
from patchmerger.commands.terminal import is_first_process
from patchmerger.data.settings import DataSettings
from patchmerger.runs.narrowing import narrowed
from patchmerger.studies.settings import ComparisonSettings


@dataclass(frozen=True)
class Command(StudyOptions, ComparisonSettings):
    """Train the same ViT with and without a merger on the same images, and compare them.

    All variants see the same images in the same order under the same schedule and seeds. With no options: three
    stratified splits of the built-in digits, under five minutes on two cores. The same command again resumes an
    interrupted run, and prints the result of a finished one. Started in a second process, it shares the trainings.
    """

    data: DataSettings = DataSettings()

    def run(self, command: str) -> int:
        """Compare, and show the table."""
        from patchmerger.reports.compare import report
        from patchmerger.studies.comparison import compare

        results = compare(
            narrowed(self, ComparisonSettings), out=self.out, reuse=self.reuse, command=command, progress=self.progress
        )
        if is_first_process():
            report(results)
        return 0
