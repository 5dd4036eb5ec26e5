"""``patchmerger fit``: train one ViT, merged or plain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchmerger.commands.terminal import is_first_process
from patchmerger.data.settings import Augmentation, DataSettings
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.training.settings import Recipe, TrainingSettings


@dataclass(frozen=True)
class Command:
    """Train a ViT, merged or plain, on your images, evaluate it on the test images, and save it.

    With --init a trained model is fine-tuned: it gets a new head where the classes are others, and another image size
    if asked for; its mergers stay as they are. The same command again resumes an interrupted run, and prints the
    result of a finished one.

    Args:
        data: The images.
        init: What to start from: a folder that patchmerger saved, the folder of a run, an architecture of timm with
            its weights, or "user/name" on the Hugging Face Hub. If not given, model.… is trained.
        model: The Vision Transformer; with init only img_size and drop rates of args.
        merge: The merger; "--merge null" trains the plain model. "auto" is the default merger, and with init the
            model as it was saved: merge.… then puts a merger into a plain one.
        image_size: Height and width of the images in pixels; the model's own if not given.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How the model is trained.
        seed: Fixes the weights at the start, the order of the images and all randomness.
        out: The run's folder; runs/fit-DATA-FINGERPRINT if not given.
        progress: Show a progress bar, on a terminal.
    """

    data: DataSettings = DataSettings()
    init: str | None = None
    model: ModelSettings = ModelSettings()
    merge: MergeSettings | Literal["auto"] | None = "auto"
    image_size: int | None = None
    augmentation: Augmentation | None = None
    training: TrainingSettings = TrainingSettings()
    seed: int = 0
    out: Path | None = None
    progress: bool = True

    def run(self, command: str) -> int:
        """Train, and show the result."""
        from patchmerger.reports.training import show_fit
        from patchmerger.training.fitting import fit

        recipe = Recipe(self.data, self.model, self.merge, self.init, self.image_size, self.augmentation, self.training)
        results = fit(recipe, seed=self.seed, out=self.out, progress=self.progress, command=command)
        if is_first_process():
            show_fit(results)
        return 0
