"""``patchmerger fewshot``: few-shot accuracy of a saved model's features."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from patchmerger.data.settings import DataSettings
from patchmerger.fewshot.settings import FewShotSettings


@dataclass(frozen=True)
class Command:
    """Measure the few-shot accuracy of a saved model: a linear classifier on its frozen features, in closed form.

    Every draw takes k training images of each class. The strength of the penalty is chosen for each on the
    validation images, and the classifier is then evaluated once on the test images. The same seed draws the same
    images for every model. The images' classes need not be those that the model was trained on.

    Args:
        model: The folder of a saved model or of a run, a timm architecture with weights, or "owner/name" on the Hub.
        data: The images, with one label each.
        shots: Training images of each class, k: one number, or several.
        draws: How often the training images are drawn; mean and standard deviation are taken over the draws.
        seed: Fixes the draws, and what is held out where the data has no validation or test split of its own.
        batch_size: Images in a batch of the one pass that gives the features.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        out: JSON file to write the result to.
        overwrite: Replace that file if it exists.
        progress: Show a progress bar, on a terminal.
    """

    model: str
    data: DataSettings = DataSettings()
    shots: int | list[int] = field(default_factory=lambda: [1, 5, 10, 25])
    draws: int = 5
    seed: int = 0
    batch_size: int = 128
    device: str | None = None
    out: Path | None = None
    overwrite: bool = False
    progress: bool = True

    def run(self, command: str) -> int:
        """Measure, and show the table."""
        from patchmerger.fewshot.probe import few_shot
        from patchmerger.reports.few_shot import show_few_shot

        shots = (self.shots,) if isinstance(self.shots, int) else tuple(self.shots)
        result = few_shot(
            self.model, self.data, FewShotSettings(shots, self.draws), seed=self.seed, batch_size=self.batch_size,
            device=self.device, out=self.out, overwrite=self.overwrite, progress=self.progress, command=command,
        )  # fmt: skip
        show_few_shot(result)
        return 0
