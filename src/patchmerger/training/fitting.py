"""One training run in a folder of its own: load, train, evaluate, save; resumed when interrupted."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.costs.model_cost import cost
from patchmerger.data import Augmentation, EvalTransform, ImageData, ImageSplits, ImageStream, load_images
from patchmerger.data.loading import DataLike, recorded_data, to_read
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.diagnosis import diagnose
from patchmerger.hosts.example_inputs import check_patches, square_input
from patchmerger.hub import load, save
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.finding import known_model, known_preprocessing, weights_fingerprint
from patchmerger.runs.environment import environment
from patchmerger.runs.run_folder import RunFolder, default_folder
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.tensors import write_tensors
from patchmerger.training.devices import check_devices
from patchmerger.training.finetuning import content_of, hand_over, start_model
from patchmerger.training.settings import FitSettings, Recipe
from patchmerger.training.sharding import gather_weights
from patchmerger.training.task import TrainingTask, score, seed_step
from patchmerger.training.trainer import Stopwatch, check_logger, make_trainer, predict, train

MODEL_FOLDER = "model"
PREDICTIONS_FILE = "test_predictions.safetensors"
_DIAGNOSED = 64  # validation images that show what a merger does
_INIT_STEP = 2**32 - 1  # a "step" for the random weights, which no training step has


def fit(
    recipe: Recipe = Recipe(),
    data: DataLike | None = None,
    *,
    model: nn.Module | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Train a ViT, merged or plain, on your images, evaluate it on the test images, and save it.

    With ``recipe.init`` a trained model is fine-tuned: it gets a new head where the classes are others, and another
    image size if asked for; its mergers stay as they are.

    The same call again resumes an interrupted run, and returns the result of a finished one.

    Args:
        recipe: The images, the model and its merger, and how it is trained.
        data: Images in place of the recipe's: a source, or a dataset of one's own, as in
            :func:`patchmerger.data.load_images`.
        model: A model of timm or torchvision to fine-tune, in place of the recipe's. It stays as it is, on its device,
            until the run is finished, and then has the mergers and the weights that were evaluated and saved: with
            ``recipe.training.ema`` the averaged ones. What it has then is another start: the next call is another run.
        seed: Fixes the weights at the start, the order of the images and all randomness.
        out: The run's folder; runs/fit-DATA-FINGERPRINT if not given.
        progress: Show a progress bar, on a terminal.
        command: The command line that asked for it, kept in the results.

    Returns:
        The content of the run's ``results.json``.

    Raises:
        TypeError: ``data`` is none of these; the message says what would do.
        ValueError: Settings or data that cannot train, or a folder of another run; before any training.
    """
    recipe = replace(recipe, data=recorded_data(data, recipe.data))
    check_logger(recipe.training.logger)
    settings = fit_settings(recipe, seed, model)
    folder = RunFolder(out or default_folder("fit", recipe.data.source, settings), settings)
    if (finished := folder.results) is not None:
        _hand_over_saved(folder, model, recipe)
        return finished
    check_devices(recipe.training)
    images = load_images(to_read(data, recipe.data), seed=seed, may_stream=True, validation=recipe.data.validation)
    return fit_images(images, recipe, model=model, seed=seed, folder=folder, progress=progress, command=command)


def fit_settings(recipe: Recipe, seed: int, model: nn.Module | None = None) -> FitSettings:
    """What fixes a run: the recipe with every default in its place and ``init`` known by its content, and the seed.

    A model in memory is known by its weights.
    """
    full = recipe.resolved(model_given=model is not None)
    init = None if recipe.init is None else content_of(recipe.init)
    if model is not None:
        init = f"weights:{weights_fingerprint(model)}"
    return FitSettings(
        full.data, full.model, full.merge, init, full.image_size, full.augmentation, full.training, seed=seed
    )


def fit_images(
    images: ImageSplits,
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    seed: int,
    folder: RunFolder,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Train on images that are loaded already, of this seed; see :func:`fit`.

    Of the recipe's ``data`` only ``crop_pct`` and ``workers`` are looked at. The folder has its :func:`fit_settings`.
    """
    recipe = recipe.resolved(model_given=model is not None)
    data, training = recipe.data, recipe.training
    num_classes = len(images.class_names)
    training.check(multi_label=images.multi_label)
    if recipe.init is not None:
        warn_of_seen(recipe.init, data.source, images, seed=seed, among=("validation", "test"))
    seed_step(seed, _INIT_STEP)
    start = start_model(recipe, model, class_names=images.class_names, native_size=native_size(images))
    net = start.model
    image_size = square_input(net)
    check_patches(net, (image_size, image_size))
    trained = recipe.model.pretrained or recipe.init is not None or model is not None
    found = known_model(host_class(net).__name__, net)
    preprocessing = known_preprocessing(found.preprocessing, found.name)
    preprocessing = replace(preprocessing, crop_pct=data.crop_pct or (preprocessing.crop_pct if trained else 1.0))

    loader = ImageData(
        images,
        image_size=image_size,
        preprocessing=preprocessing,
        batch_size=training.batch_size,
        epochs=training.epochs,
        seed=seed,
        augmentation=recipe.augmentation or Augmentation(),
        workers=data.workers,
    )
    stopwatch = Stopwatch()
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
    with folder.exclusive() as finished:
        if finished is not None:
            _hand_over_saved(folder, model, recipe)
            return finished
        train(trainer, task, loader, folder)
        scores, targets = predict(trainer, task, loader)
        if whole is not None:
            gather_weights(task.final_model, whole)
        final = task.final_model if whole is None else whole.to(trainer.strategy.root_device)
        results = {
            "command": command,
            "init": None if recipe.init is None else str(recipe.init),
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
                final, folder.path / MODEL_FOLDER, preprocessing=preprocessing,
                class_names=list(images.class_names), multi_label=images.multi_label, overwrite=True,
            )  # fmt: skip
            if not images.multi_label:
                write_tensors(folder.path / PREDICTIONS_FILE, {"predictions": scores.argmax(dim=1), "targets": targets})
            folder.finish(results)
    if model is not None:
        hand_over(final, model, recipe.merge)
    return to_json(results)  # type: ignore[no-any-return]


def _hand_over_saved(folder: RunFolder, model: nn.Module | None, recipe: Recipe) -> None:
    """What a finished run has saved is what a model in memory would have been trained to."""
    if model is not None:
        hand_over(load(folder.path / MODEL_FOLDER), model, recipe.merge)


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
            "fingerprint": images.fingerprint,
            "content": images.content,
        },
        "classes": len(images.class_names),
        "image_size": predicted.image_size[0],
        "flops": predicted.flops,
        "plain_flops": predicted.plain_flops,
        "predicted_speedup": predicted.speedup,
        "params": predicted.params,
        "tokens_in": predicted.tokens,
        "tokens_out": predicted.tokens_out,
        "block_tokens": list(predicted.block_tokens),
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
