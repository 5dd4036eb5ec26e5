"""``patchmerger place-study``: fewer tokens in trained ViTs, placed by several samplers, with and without a merger."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import StudyOptions
from patchmerger.runs.narrowing import narrowed
from patchmerger.studies.trained_settings import PlacingStudySettings


@dataclass(frozen=True)
class Command(StudyOptions, PlacingStudySettings):
    """Place fewer and fewer tokens in trained plain models, and compare what remains of their accuracy.

    Every method is evaluated without training, and some after a short fine-tuning with the plain model as teacher. The
    oracle, which uses the labels of test images, shows what placing could give. The same command again resumes an
    interrupted run; a second process beside it shares the work.
    """

    def run(self, command: str) -> int:
        """Place and evaluate all, and show the table."""
        from patchmerger.reports.place_study import report
        from patchmerger.studies.placing_study import place_study

        results = place_study(
            narrowed(self, PlacingStudySettings),
            out=self.out,
            reuse=self.reuse,
            command=command,
            progress=self.progress,
        )
        report(results)
        return 0
