"""Evaluate a saved model on images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from patchmerger.data import DataSettings, ImageData, load_images
from patchmerger.hub import describe, load
from patchmerger.models.build import square_input
from patchmerger.training.settings import Precision, TrainingSettings
from patchmerger.training.task import TrainingTask, score
from patchmerger.training.trainer import quiet


def evaluate(
    model: Path,
    *,
    data: DataSettings = DataSettings(),
    split: Literal["test", "validation"] = "test",
    seed: int = 0,
    batch_size: int = 128,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a saved model on the test (or validation) images.

    Args:
        model: A folder that patchmerger saved: the "model" folder of a run, or the run's own.
        data: The images; their classes must be those that the model was trained on.
        split: "test" or "validation".
        seed: The seed of the run, which fixes what was held out where the data has no split of its own.
        batch_size: Images in a batch.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed".
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
        progress: Show a progress bar.

    Returns:
        The metric, the number of images and, for one label an image, the accuracy of each class.

    Raises:
        ValueError: Classes that differ from the model's, no such split, or a model of transformers.
        FileNotFoundError: No model in the folder.
    """
    saved = describe(model)
    if saved.preprocessing is None or saved.library == "transformers":
        raise ValueError(f"model ({model}) is of {saved.library}: only models of timm and torchvision are evaluated")
    images = load_images(data, seed=seed, may_stream=True)
    if saved.class_names and list(saved.class_names) != list(images.class_names):
        raise ValueError(
            f"data ({data.source}) has the classes {_some(images.class_names)}, but the model in {model} was trained "
            f"on {_some(saved.class_names)}"
        )
    net = load(model)
    preprocessing = replace(saved.preprocessing, crop_pct=data.crop_pct or saved.preprocessing.crop_pct)
    loader = ImageData(
        images, image_size=square_input(net), preprocessing=preprocessing, epochs=1, workers=data.workers,
        batch_size=min(batch_size, len(images.train)),  # an ImageData must be able to train
    )  # fmt: skip
    batches = loader.test_dataloader() if split == "test" else loader.val_dataloader()
    if isinstance(batches, list):
        raise ValueError(f"split ('validation'): {data.source} has no validation images with data.validation = 0")
    task = TrainingTask(
        net, TrainingSettings(loss="sigmoid" if images.multi_label else "softmax"), seed=seed, steps_per_epoch=1,
        num_classes=len(images.class_names), multi_label=images.multi_label, preprocessing=preprocessing,
    )  # fmt: skip
    with quiet():
        trainer = pl.Trainer(
            accelerator=accelerator, devices=1, precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=progress, enable_model_summary=False,
        )  # fmt: skip
        parts = trainer.predict(task, dataloaders=batches)
    scores, targets = (torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[misc]
    result: dict[str, Any] = {
        "model": str(model),
        "data": images.description,
        "split": split,
        "images": len(targets),
        "metric": "mAP" if images.multi_label else "accuracy",
        "value": score(scores, targets),
    }
    if not images.multi_label:
        right = scores.argmax(dim=1) == targets
        result["per_class"] = {
            name: float(right[targets == i].float().mean()) for i, name in enumerate(images.class_names)
        }
    return result


def _some(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
