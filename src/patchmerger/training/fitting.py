"""One training run in a folder of its own: load, train, evaluate, save; resumed when interrupted."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import nn

from patchmerger.costs.model_cost import cost
from patchmerger.data import (
    Augmentation,
    DataSettings,
    EvalTransform,
    ImageData,
    ImageSplits,
    ImageStream,
    Preprocessing,
    default_augmentation,
    load_images,
)
from patchmerger.diagnosis import diagnose
from patchmerger.hub import save
from patchmerger.inserted import mergers
from patchmerger.models.build import check_patches
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs.environment import environment
from patchmerger.runs.run_folder import RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.training.callbacks import Stopwatch, quiet
from patchmerger.training.checkpoints import LAST
from patchmerger.training.finetuning import Init, Merge, identify_start, start_model
from patchmerger.training.settings import TrainingSettings
from patchmerger.training.sharding import gather_weights
from patchmerger.training.task import TrainingTask, score, seed_step
from patchmerger.training.trainers import make_trainer as make_trainer
from patchmerger.training.trainers import predict

MODEL_FOLDER = "model"
PREDICTIONS_FILE = "test_predictions.safetensors"
_DIAGNOSED = 64  # validation images that show what a merger does
_INIT_STEP = 2**32 - 1  # a "step" for the random weights, which no training step has


def fit(
    *,
    data: DataSettings = DataSettings(),
    init: str | Path | None = None,
    model: ModelSettings = ModelSettings(),
    merge: MergeSettings | Literal["auto"] | None = "auto",
    image_size: int | None = None,
    augmentation: Augmentation | None = None,
    training: TrainingSettings = TrainingSettings(),
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a ViT, merged or plain, on your images, evaluate it on the test images, and save it.

    With ``init`` a trained model is fine-tuned: it gets a new head where the classes are others, and another image
    size if asked for; its mergers stay as they are.

    The same command again goes on where an interrupted run stopped, and prints the result of a finished one.

    Args:
        data: The images.
        init: What to start from: a folder that patchmerger saved, the folder of a run, an architecture of timm with
            its weights, or "user/name" on the Hugging Face hub. If not given, model.… is trained.
        model: The Vision Transformer. With init only args, and of those img_size and drop rates.
        merge: The merger; "--merge null" trains the plain model. "auto" is the default merger, and with init the
            model as it was saved: merge.… then puts a merger into a plain one.
        image_size: Height and width of the images in pixels; the model's own if not given.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How the model is trained.
        seed: Fixes the weights at the start, the order of the images and all randomness.
        out: The run's folder; runs/fit-DATA-FINGERPRINT if not given.
        progress: Show a progress bar, on a terminal.

    Returns:
        The content of the run's ``results.json``.

    Raises:
        ValueError: Settings or data that cannot train, or a folder of another run; before any training.
    """
    augmentation = augmentation or default_augmentation(data.source)
    model = model.sized(image_size)
    if init is None and merge == "auto":
        merge = MergeSettings()
    settings = {
        "data": data,
        "model": model,
        "merge": merge,
        "augmentation": augmentation,
        "training": training,
        "seed": seed,
        **({} if init is None else {"init": identify_start(init)}),
    }
    folder = RunFolder(out or default_folder("fit", data.source, settings), settings)
    if folder.results is not None:
        return folder.results
    images = load_images(data, seed=seed, may_stream=True)
    return fit_images(
        images, data=data, init=init, model=model, merge=merge, augmentation=augmentation, training=training,
        seed=seed, folder=folder, progress=progress,
    )  # fmt: skip


def fit_images(
    images: ImageSplits,
    *,
    data: DataSettings,
    model: ModelSettings,
    merge: Merge,
    augmentation: Augmentation,
    training: TrainingSettings,
    seed: int,
    folder: RunFolder,
    init: Init | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train on images that are loaded already; see :func:`fit`.

    With ``init``, the settings of ``folder`` should hold its :func:`~patchmerger.training.finetuning.identify_start`.
    """
    num_classes = len(images.class_names)
    training.check(multi_label=images.multi_label)
    seed_step(seed, _INIT_STEP)
    start = start_model(init, model, merge, class_names=images.class_names, native_size=native_size(images))
    net = start.model
    config = resolve_model_data_config(net)
    image_size = square_input(net)
    check_patches(net, (image_size, image_size))
    own_crop = config["crop_pct"] if model.pretrained or init is not None else 1.0
    preprocessing = Preprocessing(
        config["mean"], config["std"], data.crop_pct or own_crop, interpolation=config["interpolation"]
    )

    loader = ImageData(
        images,
        image_size=image_size,
        preprocessing=preprocessing,
        batch_size=training.batch_size,
        epochs=training.epochs,
        seed=seed,
        augmentation=augmentation,
        workers=data.workers,
    )
    stopwatch = Stopwatch()
    with quiet():
        trainer = make_trainer(training, folder, stopwatch, progress=progress and sys.stdout.isatty())
    loader.trainer = trainer  # tells the number of devices, and so the batches of an epoch
    trainer.val_check_interval = loader.steps_per_epoch
    trainer.log_every_n_steps = min(10, loader.steps_per_epoch)  # type: ignore[attr-defined]
    task = TrainingTask(
        net,
        training,
        seed=seed,
        steps_per_epoch=loader.steps_per_epoch,
        num_classes=num_classes,
        multi_label=images.multi_label,
        preprocessing=preprocessing,
    )
    whole = copy.deepcopy(net) if training.strategy == "fsdp" else None
    folder.begin()
    checkpoint = folder.path / "checkpoints" / LAST
    with quiet():
        try:
            trainer.fit(task, datamodule=loader, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        scores, targets = predict(trainer, task, loader)
    if whole is not None:
        gather_weights(task.final_model, whole)
    final = task.final_model if whole is None else whole.to(trainer.strategy.root_device)

    results = {
        **_described(images, final),
        "new_head": start.new_head,
        "metric": "mAP" if images.multi_label else "accuracy",
        "test_metric": score(scores, targets),
        "seconds": stopwatch.seconds,
        "images_per_second": stopwatch.images_per_second,
        "history": task.history,
        "merger": _diagnosed(task, final, images, EvalTransform(image_size, preprocessing)),
        "settings": folder.settings,
        "folder": str(folder.path),
        "environment": environment(trainer.strategy.root_device),
    }
    if trainer.is_global_zero:
        save(
            final, folder.path / MODEL_FOLDER, **asdict(preprocessing),
            class_names=list(images.class_names), overwrite=True,
        )  # fmt: skip
        if not images.multi_label:
            save_file({"predictions": scores.argmax(dim=1), "targets": targets}, folder.path / PREDICTIONS_FILE)
        folder.finish(results)
    return results


def _described(images: ImageSplits, model: nn.Module) -> dict[str, Any]:
    """What the results say of the images and of the model."""
    predicted = cost(model)
    return {
        "images": {
            "train": len(images.train),
            "validation": 0 if images.validation is None else len(images.validation),
            "test": len(images.test),
            "skipped": list(images.skipped),
            "description": images.description,
        },
        "classes": len(images.class_names),
        "image_size": predicted.image_size[0],
        "flops": predicted.flops,
        "plain_flops": predicted.plain_flops,
        "predicted_speedup": predicted.speedup,
        "params": predicted.params,
        "tokens_in": predicted.tokens,
        "tokens_out": predicted.tokens_out,
        "mergers": [{"after": m.after, "num_tokens": m.num_tokens} for m in mergers(model)],
    }


def _diagnosed(task: TrainingTask, model: nn.Module, images: ImageSplits, transform: EvalTransform) -> dict[str, Any]:
    """What each merger does on some images, by its name in the model."""
    held_out = images.to_look_at
    batch = torch.stack([transform(held_out[i]) for i in range(min(_DIAGNOSED, len(held_out)))])
    found = diagnose(model, task.normalize(batch.to(next(model.parameters()).device)))
    return {merger.name: {key: value for key, value in to_json(merger).items() if key != "name"} for merger in found}


def native_size(images: ImageSplits) -> int:
    """The smaller side of the first image, in pixels."""
    indexed = images.to_look_at if isinstance(images.train, ImageStream) else images.train
    return int(min(indexed[0].shape[-2:]))


def square_input(model: nn.Module) -> int:
    """The side of the square images that a model takes, in pixels."""
    height, width = cost(model).image_size
    if height != width:
        raise ValueError(f"model.args make a model for images of {height} × {width} pixels; training takes square ones")
    return height
