"""``patchmerger sweep``: a grid of mergers, each trained alike, against the plain model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.mechanism.options import Norm
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.studies.settings import Grid, SweepSettings
from patchmerger.training.settings import TrainingSettings


@dataclass(frozen=True)
class Command:
    """Train a merger for every block and number of tokens, and compare accuracy, cost and measured speed.

    The same command again resumes an interrupted run, and tries again what failed. Several processes of the same
    command share the work, on one machine or on several that see the same folder. With no options: nine mergers and
    the plain model on the built-in digits, some ten minutes on two cores.

    Args:
        after: Blocks to merge after, counted from 1; a quarter, half and three quarters of the depth if not given.
        num_tokens: Numbers of tokens that go on, M.
        norm: Where to normalise, "scores", "both" or "none": the grid is trained with each; as in merge if not given.
        scale: Factors on the scores, likewise.
        logit_std: Standard deviations of the scores at the start, likewise.
        further: Mergers outside the grid, by name, such as two of them: {two: {after: [2, 4], num_tokens: [16, 8]}}.
        data: The images.
        model: The plain Vision Transformer.
        merge: What the grid does not vary of the merger: prefix, preset, ...
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How each model is trained, on one device.
        seeds: How often each is trained; seed s fixes weights, order and held-out images alike.
        rounds: Rounds of the speed measurement, in which a merged model and the plain one are timed in turn.
        shard: "1/2" trains the first of two parts, for machines that do not see one folder; the command without it
            makes the table once the folders are put together.
        out: The folder of the results; runs/sweep-DATA-FINGERPRINT if not given.
        progress: Show what is being trained, with a progress bar on a terminal.
    """

    after: list[int] | None = None
    num_tokens: list[int] = field(default_factory=lambda: [4, 8, 16])
    norm: list[Norm] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    logit_std: list[float] = field(default_factory=list)
    further: dict[str, MergeSettings] = field(default_factory=dict)
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    merge: MergeSettings = MergeSettings()
    augmentation: Augmentation | None = None
    training: TrainingSettings = TrainingSettings()
    seeds: int = 1
    rounds: int = 15
    shard: str | None = None
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Train the grid, and show the table; the status is 1 where a cell failed."""
        from patchmerger.reports.sweep import report_sweep
        from patchmerger.studies.merger_sweep import sweep

        grid = Grid(self.after, self.num_tokens, self.norm, self.scale, self.logit_std, self.further)
        settings = SweepSettings(
            self.data, self.model, self.merge, augmentation=self.augmentation, training=self.training,
            seeds=self.seeds, rounds=self.rounds, grid=grid,
        )  # fmt: skip
        results = sweep(settings, shard=self.shard, out=self.out, command=command, progress=self.progress)
        return report_sweep(results)
