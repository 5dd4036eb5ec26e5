"""``patchmerger transfer``: train upstream, then few-shot and fine-tuned on other images."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import StudyOptions
from patchmerger.data.settings import DataSettings
from patchmerger.runs.narrowing import narrowed
from patchmerger.studies.settings import TransferSettings


@dataclass(frozen=True)
class Command(StudyOptions, TransferSettings):
    """Train upstream, then evaluate on other images: few-shot on frozen features, and fine-tuned.

    For the plain and the merged model, and others if asked for, all trained alike. The same command again resumes an
    interrupted run, within a stage too, and prints the result of a finished one; several processes of it share the
    variants and seeds. With no options both are the built-in digits, which shows how it works and says nothing of
    transfer.
    """

    data: DataSettings = DataSettings()
    downstream: DataSettings = DataSettings()

    def run(self, command: str) -> int:
        """Train and evaluate, and show the table."""
        from patchmerger.reports.transfer import report
        from patchmerger.studies.transfer_study import transfer

        results = transfer(
            narrowed(self, TransferSettings), out=self.out, reuse=self.reuse, command=command, progress=self.progress
        )
        report(results)
        return 0
