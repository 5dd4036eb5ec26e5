"""``patchmerger fewshot``: few-shot accuracy of a saved model's features."""

from __future__ import annotations

from dataclasses import dataclass

from patchmerger.commands.shared_options import FileOptions, TrainedModelOptions
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.fewshot.settings import FewShotSettings
from patchmerger.runs.narrowing import narrowed


@dataclass(frozen=True)
class Command(FileOptions, FewShotSettings, TrainedModelOptions):
    """Measure the few-shot accuracy of a saved model: a linear classifier on its frozen features, in closed form.

    Every draw takes k training images of each class. The strength of the penalty is chosen for each on the
    validation images, and the classifier is then evaluated once on the test images. The same seed draws the same
    images for every model. The images' classes need not be those that the model was trained on.

    Args:
        data: The images, with one label each.
        seed: Fixes the draws, and what is held out where the data has no validation or test split of its own.
        batch_size: Images in a batch of the one pass that gives the features.
        preprocessing: How images are prepared, in place of what is known of the model.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        progress: Show a progress bar, on a terminal.
    """

    data: DataSettings = DataSettings()
    seed: int = 0
    batch_size: int = 128
    preprocessing: Preprocessing | None = None
    device: str | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Measure, and show the table."""
        from patchmerger.fewshot.probe import few_shot
        from patchmerger.reports.fewshot import show

        result = few_shot(
            self.model, self.data, narrowed(self, FewShotSettings), seed=self.seed, batch_size=self.batch_size,
            preprocessing=self.preprocessing, device=self.device, out=self.out, overwrite=self.overwrite,
            progress=self.progress, command=command,
        )  # fmt: skip
        show(result.as_dict())
        return 0
