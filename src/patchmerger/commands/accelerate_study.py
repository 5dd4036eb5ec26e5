"""``patchmerger accelerate-study``: trained ViTs, made faster by several methods and recovered alike."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import StudyOptions
from patchmerger.runs.narrowing import narrowed
from patchmerger.studies.trained_settings import AccelerationStudySettings


@dataclass(frozen=True)
class Command(StudyOptions, AccelerationStudySettings):
    """Make trained plain models faster by several methods, recover each alike, and compare them.

    Methods at one speed-up share a placement, kept tokens, images and order. The same command again resumes an
    interrupted run; a second process beside it shares the work.
    """

    def run(self, command: str) -> int:
        """Accelerate all, and show the table."""
        from patchmerger.reports.accelerate_study import report
        from patchmerger.studies.acceleration_study import accelerate_study

        results = accelerate_study(
            narrowed(self, AccelerationStudySettings),
            out=self.out,
            reuse=self.reuse,
            command=command,
            progress=self.progress,
        )
        report(results)
        return 0
