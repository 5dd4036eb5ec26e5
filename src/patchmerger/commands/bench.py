"""``patchmerger bench``: measured speed with and without a merger."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import PictureOptions
from patchmerger.data.settings import DataSettings
from patchmerger.runs.narrowing import narrowed
from patchmerger.speed.settings import BenchSettings


@dataclass(frozen=True)
class _Models:
    """What is measured.

    Args:
        models: Timm architectures, such as vit_small_patch16_224, folders of saved models or runs, safetensors files.
            A saved model that merges is measured against itself without its mergers. Files of patchmerger export are
            measured as they are.
    """

    models: list[str]


@dataclass(frozen=True)
class Command(PictureOptions, BenchSettings, _Models):
    """Measure how much faster Vision Transformers are with a merger than without.

    Timm's models have random weights and all run on random images, for speed does not depend on them. In each row the
    models are timed in turn, so that a noisy machine slows all alike; the result is the median of the ratios within
    the rounds. Beside it stand the speed-up that FLOPs predict and the one that a roofline allows, with the peak rates
    of the device measured first. A row that runs out of memory says so, and the others go on.

    Args:
        data: With --formats, images to calibrate int8 on, and to compare exported files with their models on.
        out: JSON file for the result, written after each row. The same command again measures what is missing
            after an interrupt (Ctrl-C): rows, and with --formats forms and rounds; until then files that were made
            stay in a hidden folder beside it.
        picture: PNG file to draw: speed-up against batch size, with the predictions of FLOPs and roofline; with
            --formats, images a second in each form.
        overwrite: Replace these files if they exist.
    """

    data: DataSettings | None = None

    def run(self, command: str) -> int:
        """Measure, and show the tables; the status says whether any row was measured."""
        self.check_picture()

        from patchmerger.reports import bench as speed_report
        from patchmerger.reports import deployment as deployment_report
        from patchmerger.speed.deployment_record import KIND, forms_folder
        from patchmerger.speed.suite import bench

        results = bench(
            self.models, narrowed(self, BenchSettings), data=self.data, out=self.out, overwrite=self.overwrite,
            command=command,
        )  # fmt: skip
        resumable = self.out is not None and not self.overwrite  # which begins anew
        if results.get("kind") == KIND:
            files = None if self.out is None else forms_folder(self.out)
            return deployment_report.report(results, self.picture, resumable=resumable, files=files)
        return speed_report.report(results, self.picture, resumable=resumable)
