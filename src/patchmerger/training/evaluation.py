"""Evaluate a model on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn

from patchmerger.data import DataSettings, ImageData, ImageSplits, Preprocessing, load_images
from patchmerger.data.loading import DataLike, name_of, settings_of
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import find_classifier
from patchmerger.models.finding import FoundModel
from patchmerger.runs.text import some_of
from patchmerger.training.devices import check_accelerator, quiet
from patchmerger.training.settings import Precision, TrainingSettings
from patchmerger.training.task import TrainingTask, score


def evaluate(
    model: str | Path | nn.Module,
    data: DataLike = DataSettings(),
    *,
    split: Literal["test", "validation"] = "test",
    seed: int = 0,
    batch_size: int = 128,
    preprocessing: Preprocessing | None = None,
    precision: Precision = "32-true",
    accelerator: str = "auto",
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the test (or validation) images.

    Args:
        model: A folder that patchmerger or transformers saved, the folder of a run, an architecture of timm with
            weights, a name on the Hugging Face Hub, or a model, which stays as it is.
        data: The images; their classes must be those that the model was trained on. A source, ``DataSettings``, or a
            dataset of one's own, as in :func:`patchmerger.data.load_images`.
        split: "test" or "validation".
        seed: The seed of the run, which fixes what was held out where the data has no split of its own.
        batch_size: Images in a batch.
        preprocessing: How images are prepared, in place of what is known of the model.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed".
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
        progress: Show a progress bar.
        command: The command line that asked for it, kept in the results.

    Returns:
        The metric, the number of images and, for one label an image, the accuracy of each class.

    Raises:
        TypeError: ``data`` is none of these; the message says what would do.
        ValueError: Classes that differ from the model's, no such split, or a model whose preprocessing is not known.
        FileNotFoundError: No such model or data.
    """
    check_accelerator(accelerator, "accelerator")
    settings = settings_of(data)
    found = find_classifier(model, preprocessing=preprocessing, crop_pct=settings.crop_pct)
    net, prepared = found.classifier, found.preprocessing
    images = load_images(data, seed=seed, may_stream=True)
    _check_classes(found, net.num_outputs, images, data)
    warn_of_seen(found.name, name_of(data), images, seed=seed, among=(split,))
    loader = ImageData(
        images, image_size=found.image_size, preprocessing=prepared, epochs=1, workers=settings.workers,
        batch_size=min(batch_size, len(images.train)),  # an ImageData must be able to train
    )  # fmt: skip
    batches = loader.test_dataloader() if split == "test" else loader.val_dataloader()
    if isinstance(batches, list):
        raise ValueError(f"split ('validation'): {images.description} has no validation images")
    task = TrainingTask(
        net, TrainingSettings(loss="sigmoid" if images.multi_label else "softmax"), seed=seed, steps_per_epoch=1,
        num_classes=len(images.class_names), multi_label=images.multi_label, preprocessing=prepared,
    )  # fmt: skip
    device = next(net.parameters()).device
    with quiet(), eval_mode(net):
        trainer = pl.Trainer(
            accelerator=accelerator, devices=1, precision=precision, logger=False, enable_checkpointing=False,
            enable_progress_bar=progress, enable_model_summary=False,
        )  # fmt: skip
        parts = trainer.predict(task, dataloaders=batches)
    net.to(device)
    scores, targets = (torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[misc]
    result: dict[str, Any] = {
        "command": command,
        "model": found.name,
        "data": images.description,
        "split": split,
        "images": len(targets),
        "metric": "mAP" if images.multi_label else "accuracy",
        "value": score(scores, targets),
    }
    if not images.multi_label:
        right = scores.argmax(dim=1) == targets
        result["per_class"] = {
            name: float(right[targets == i].float().mean()) if bool((targets == i).any()) else None
            for i, name in enumerate(images.class_names)
        }
    return result


def _check_classes(found: FoundModel, outputs: int, images: ImageSplits, data: DataLike) -> None:
    """Refuse images of other classes than the model's; those that are numbered only are taken to be its outputs."""
    name, ours, theirs = name_of(data), images.class_names, found.class_names
    if theirs and ours != tuple(theirs) and ours != tuple(map(str, range(outputs))):
        raise ValueError(
            f"data ({name}) has the classes {some_of(ours)}, but model ({found.name}) was trained on {some_of(theirs)}"
        )
    if len(ours) != outputs:
        raise ValueError(f"data ({name}) has {len(ours)} classes, but model ({found.name}) has {outputs} outputs")
