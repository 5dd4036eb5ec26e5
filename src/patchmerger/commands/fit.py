"""``patchmerger fit``: train one ViT, merged or plain."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import RunOptions
from patchmerger.commands.terminal import is_first_process
from patchmerger.data.settings import DataSettings
from patchmerger.runs.narrowing import narrowed
from patchmerger.training.settings import FitSettings, Recipe


@dataclass(frozen=True)
class Command(RunOptions, FitSettings):
    """Train a ViT, merged or plain, on your images, evaluate it on the test images, and save it.

    With --init a trained model is fine-tuned: it gets a new head where the classes are others, and another image size
    if asked for; its mergers stay as they are. The same command again resumes an interrupted run, and prints the
    result of a finished one.
    """

    data: DataSettings = DataSettings()
    init: str | None = None

    def run(self, command: str) -> int:
        """Train, and show the result."""
        from patchmerger.reports.fit import show
        from patchmerger.training.fitting import fit

        results = fit(narrowed(self, Recipe), seed=self.seed, out=self.out, progress=self.progress, command=command)
        if is_first_process():
            show(results)
        return 0
