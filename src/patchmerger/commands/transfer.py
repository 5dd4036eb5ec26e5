"""``patchmerger transfer``: train upstream, then few-shot and fine-tuned on other images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.studies.settings import Downstream, FineTuning, TransferSettings, Variant
from patchmerger.training.settings import TrainingSettings


@dataclass(frozen=True)
class Command:
    """Train upstream, then evaluate on other images: few-shot on frozen features, and fine-tuned.

    For the plain and the merged model, and others if asked for, all trained alike. The same command again resumes an
    interrupted run, within a stage too, and prints the result of a finished one; several processes of it share the
    variants and seeds. With no options both are the built-in digits, which shows how it works and says nothing of
    transfer.

    Args:
        data: The images to train on upstream.
        downstream: The images to transfer to.
        model: The plain Vision Transformer.
        merge: The merger.
        variants: Any of plain, merged, paper, located, average and shallow, as for compare; in a config file
            also names with a merger and model of their own.
        augmentation: How training images are varied upstream; padded crops and flips if not given (digits: none).
        training: How each variant is trained upstream.
        shots: Training images of each class in few-shot evaluation, k.
        draws: How often these are drawn; the accuracy of a seed is the mean over them.
        finetuning: How each is fine-tuned.
        seeds: How often all is done; seed s fixes weights, order, held-out images and draws alike for all variants.
        rounds: Rounds of the speed measurement, in which the variants are timed in turn.
        out: The folder of the results; runs/transfer-DATA-FINGERPRINT if not given.
        progress: Show what is being done, with a progress bar on a terminal.
    """

    data: DataSettings = DataSettings()
    downstream: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    merge: MergeSettings = MergeSettings()
    variants: list[str] | dict[str, Variant | None] = field(default_factory=lambda: ["plain", "merged"])
    augmentation: Augmentation | None = None
    training: TrainingSettings = TrainingSettings()
    shots: list[int] = field(default_factory=lambda: [1, 5, 10, 25])
    draws: int = 5
    finetuning: FineTuning = FineTuning()
    seeds: int = 3
    rounds: int = 15
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Train and evaluate, and show the table."""
        from patchmerger.reports.transfer import report_transfer
        from patchmerger.studies.transfer_study import transfer

        settings = TransferSettings(
            self.data, self.model, self.merge, augmentation=self.augmentation, training=self.training,
            seeds=self.seeds, rounds=self.rounds, variants=self.variants,
            downstream=Downstream(self.downstream, FewShotSettings(tuple(self.shots), self.draws), self.finetuning),
        )  # fmt: skip
        results = transfer(settings, out=self.out, command=command, progress=self.progress)
        report_transfer(results)
        return 0
