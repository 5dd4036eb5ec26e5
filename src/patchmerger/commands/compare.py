"""``patchmerger compare``: the same ViT with and without a merger, trained alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.commands.terminal import is_first_process
from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.studies.settings import ComparisonSettings, Variant
from patchmerger.training.settings import TrainingSettings


@dataclass(frozen=True)
class Command:
    """Train the same ViT with and without a merger on the same images, and compare them.

    All variants see the same images in the same order under the same schedule and seeds. With no options: three
    stratified splits of the built-in digits, under five minutes on two cores. The same command again resumes an
    interrupted run, and prints the result of a finished one. Started in a second process, it shares the trainings.

    Args:
        data: The images.
        model: The plain Vision Transformer.
        merge: The merger.
        variants: Any of plain, merged, paper, located (queries that begin with places), average (pooling in the
            merger's place) and shallow (fewer blocks, the merged model's FLOPs); in a config file also names with a
            merger and model of their own.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How each variant is trained.
        seeds: How often each variant is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which the variants are timed in turn.
        out: The folder of the results; runs/compare-DATA-FINGERPRINT if not given.
        progress: Show what is being trained, with a progress bar on a terminal.
    """

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    merge: MergeSettings = MergeSettings()
    variants: list[str] | dict[str, Variant | None] = field(default_factory=lambda: ["plain", "merged"])
    augmentation: Augmentation | None = None
    training: TrainingSettings = TrainingSettings()
    seeds: int = 3
    rounds: int = 15
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Compare, and show the table."""
        from patchmerger.reports.comparison import report_comparison
        from patchmerger.studies.comparison import compare

        settings = ComparisonSettings(
            self.data, self.model, self.merge, augmentation=self.augmentation, training=self.training,
            seeds=self.seeds, rounds=self.rounds, variants=self.variants,
        )  # fmt: skip
        results = compare(settings, out=self.out, command=command, progress=self.progress)
        if is_first_process():
            report_comparison(results)
        return 0
