"""``patchmerger bench``: measured speed with and without a merger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchmerger.commands.shared_options import FileOptions
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
class Command(FileOptions, BenchSettings, _Models):
    """Measure how much faster Vision Transformers are with a merger than without.

    Timm's models have random weights and all run on random images, for speed does not depend on them. In each row the
    models are timed in turn, so that a noisy machine slows all alike; the result is the median of the ratios within
    the rounds. Beside it stand the speed-up that FLOPs predict and the one that a roofline allows, with the peak rates
    of the device measured first. A row that runs out of memory says so, and the others go on.

    Args:
        data: With --formats, images to calibrate int8 on, and to compare exported files with their models on.
        out: JSON file for the result, written after each row. The same command again measures the rows that are
            missing after an interrupt (Ctrl-C).
        picture: PNG file to draw: speed-up against batch size, with the predictions of FLOPs and roofline; with
            --formats, images a second in each form.
        overwrite: Replace these files if they exist.
    """

    data: DataSettings | None = None
    picture: Path | None = None

    def run(self, command: str) -> int:
        """Measure, and show the tables; the status says whether any row was measured."""
        from patchmerger.reports.deployment import draw_deployment, show_deployment
        from patchmerger.reports.speed import draw_speed, show_speed
        from patchmerger.speed.deployment import KIND
        from patchmerger.speed.suite import bench

        if self.picture is not None and self.picture.exists() and not self.overwrite:
            raise FileExistsError(f"picture ({self.picture}) exists already: take another name, or --overwrite true")
        results = bench(
            self.models, narrowed(self, BenchSettings), data=self.data, out=self.out, overwrite=self.overwrite,
            command=command,
        )  # fmt: skip
        if results.get("kind") == KIND:
            if self.picture is not None:
                draw_deployment(results, self.picture)
            show_deployment(results)
            return 0
        if self.picture is not None and results["finished"]:
            draw_speed(results, self.picture)
        return show_speed(results, resumable=self.out is not None)
