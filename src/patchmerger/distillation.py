"""Win accuracy back after a merger went into a trained model: a short training with the plain model as teacher."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from patchmerger.callbacks import Stopwatch, quiet
from patchmerger.checkpoints import LAST
from patchmerger.data import Augmentation, ImageData, ImageSplits, Transform
from patchmerger.fitting import make_trainer, square_input
from patchmerger.merging_block import is_merging
from patchmerger.outputs import Classifier, divergence, feature_error
from patchmerger.recovery_settings import RecoverySettings
from patchmerger.run_folder import RunFolder
from patchmerger.train import TrainingTask, parameter_groups
from patchmerger.training_settings import Precision

ModelT = TypeVar("ModelT", bound=nn.Module)


class DistillationTask(TrainingTask):
    """Trains a merged model to do what the plain one does.

    ``loss = w_t T² KL(teacher ‖ student) + w_f ‖f_s − f_t‖² / variance of f_t + w_l (cross-entropy with the labels)``,
    where f are the pooled features before the last layer. The mergers learn first and at a higher rate, then all.

    timm's ``LogitDistillationTask`` has the same first and last term; it needs a label for every image and a
    ``pretrained_cfg``, and so takes neither unlabelled images nor models of other libraries.

    Args:
        student: The merged model.
        teacher: The plain one; it is not changed, and is no part of the task's state.
        recovery: How to train.
        precision: As in ``TrainingSettings``.
        labels: Whether targets are labels; without, accuracy is agreement with the teacher.
        total_steps: Steps of the optimiser in all.
        seed: Of the run.
        steps_per_epoch: Batches in an epoch.
        multi_label: Whether targets are (B, C), several labels an image.
        mean: Of each channel, for pixels from 0 to 1.
        std: Of each channel.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        recovery: RecoverySettings,
        *,
        precision: Precision,
        labels: bool,
        total_steps: int,
        seed: int,
        steps_per_epoch: int,
        multi_label: bool = False,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        recovery.check(labels=labels)
        classifier = Classifier(student)
        super().__init__(
            classifier,
            recovery.as_training(precision, multi_label=multi_label),
            seed=seed,
            steps_per_epoch=steps_per_epoch,
            num_classes=classifier.num_outputs,
            multi_label=multi_label,
            mean=mean,
            std=std,
        )
        self.recovery = recovery
        self.labels = labels
        self.total_steps = total_steps
        self._teacher = [Classifier(teacher).eval()]  # in a list, so that it is neither trained nor in checkpoints

    @property
    def teacher(self) -> Classifier:
        """The plain model, on the device of the student."""
        place = next(self.model.parameters()).device
        if next(self._teacher[0].parameters()).device != place:
            self._teacher[0].to(place)
        return self._teacher[0]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch: both models see the same images."""
        images, targets = batch
        images = self.normalize(images)
        with torch.no_grad():
            like = next(self.teacher.parameters())
            wanted, wanted_features = self.teacher.with_features(images.to(like.dtype))
        student: Any = self.model
        scores, features = student.with_features(images)
        r, parts = self.recovery, []
        if r.teacher_weight and self.teacher.head is not None:
            gap = divergence(scores, wanted, temperature=r.temperature, multi_label=self.multi_label)
            parts.append(r.teacher_weight * gap)
        if r.feature_weight:
            parts.append(r.feature_weight * feature_error(features, wanted_features))
        weight = r.weight_of_labels(self.labels)
        if weight:
            parts.append(weight * self.loss(scores.float(), targets))
        loss = torch.stack(parts).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at {self._where(batch_idx)}: {WAY_OUT}")
        self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """As in training; without labels, what the teacher says takes their place."""
        super().validation_step((batch[0], batch[1] if self.labels else self._said_by_teacher(batch[0])), batch_idx)

    def _said_by_teacher(self, images: Tensor) -> Tensor:
        scores = self.teacher(self.normalize(images))
        return (scores > 0).float() if self.multi_label else scores.argmax(dim=1)

    def configure_optimizers(self) -> Any:
        """Timm's optimiser and weight decay; mergers and the rest have schedules of their own."""
        student: Any = self.model
        mergers = {id(p) for block in self.model.modules() if is_merging(block) for p in block.merger.parameters()}
        groups, schedules = [], []
        for group in parameter_groups(student.net, self.settings):
            for ours in (True, False):
                chosen = [p for p in group["params"] if (id(p) in mergers) is ours]
                if chosen:
                    factor = self.recovery.merger_lr if ours else 1.0
                    decay = 0.0 if ours else group["weight_decay"]
                    rate = self.recovery.lr * factor
                    groups.append({**group, "params": chosen, "lr": rate, "weight_decay": decay})
                    schedules.append(self.merger_rate if ours else self.rest_rate)
        optimizer = create_optimizer_v2(groups, opt=self.recovery.optimizer, lr=self.recovery.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As torch's schedulers want it."""
        scheduler.step()

    def merger_rate(self, step: int) -> float:
        """Share of its highest learning rate that the mergers have at ``step``: a warm-up, then a cosine."""
        return _rate(step, 0.0, self.recovery.warmup * self.recovery.merger_first, self.total_steps)

    def rest_rate(self, step: int) -> float:
        """The same of all else, which begins later."""
        return _rate(step, self.recovery.merger_first, self.recovery.warmup, self.total_steps)


def _rate(step: int, begin: float, warmup: float, total: int) -> float:
    """Zero before ``begin`` (a share of all steps), a rise over ``warmup``, then half a cosine to the end."""
    done = (step + 1) / (total + 1)
    if done <= begin and begin > 0:
        return 0.0
    if done < begin + warmup:
        return (done - begin) / warmup
    left = max(1e-12, 1 - begin - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - begin - warmup) / left)))


WAY_OUT = "lower recovery.lr, set recovery.clip_grad, or use recovery.precision '32-true'"


def distill(
    student: ModelT,
    teacher: nn.Module,
    data: ImageSplits,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_pct: float = 1.0,
    epochs: float | None = None,
    steps: int | None = None,
    recovery: RecoverySettings = RecoverySettings(),
    labels: bool = True,
    augmentation: Augmentation | Transform = Augmentation(),
    workers: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a merged model in place to do what the plain one does.

    With a folder, the same call again goes on where an interrupted one stopped. Order, augmentation and randomness are
    functions of (seed, step), as in training.

    Args:
        student: The merged model, trained in place.
        teacher: The plain model; it is left as it was.
        data: Images; targets are not looked at where ``labels`` is false.
        mean: Mean of each channel of the models' input, for pixels from 0 to 1.
        std: Standard deviation of each channel.
        crop_pct: In evaluation, the share of the resized image that is kept.
        epochs: Passes over the training images, also a part of one, such as 0.5; 1 if ``steps`` is not given either.
        steps: In its place the number of batches.
        recovery: How to train.
        labels: Whether the targets are labels; without them the teacher alone guides.
        augmentation: How training images are varied, for both models alike.
        workers: Processes that load images.
        seed: Fixes the order of the images and all randomness.
        out: A folder for checkpoints and logs; by default none are kept.
        progress: Show a progress bar, on a terminal.

    Returns:
        ``steps``, ``epochs``, ``seconds``, ``images_per_second`` and the ``history`` of the validation accuracy
        (without labels: of the agreement with the teacher).

    Raises:
        ValueError: Settings or images that do not fit, or a folder of another call; before any training.
        FloatingPointError: The loss is not finite.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            return distill(
                student, teacher, data, mean=mean, std=std, crop_pct=crop_pct, epochs=epochs, steps=steps,
                recovery=recovery, labels=labels, augmentation=augmentation, workers=workers, seed=seed,
                out=Path(folder), progress=progress,
            )  # fmt: skip
    precision = recovery.precision or default_precision(recovery.accelerator)
    recovery.check(labels=labels)
    image_size = square_input(student)
    loader = ImageData(
        data, image_size=image_size, crop_pct=crop_pct, batch_size=recovery.batch_size, epochs=1, seed=seed,
        augmentation=augmentation, workers=workers,
    )  # fmt: skip
    total = steps_of(epochs, steps, loader.steps_per_epoch)
    loader.epochs = math.ceil(total / loader.steps_per_epoch)
    task = DistillationTask(
        student, teacher, recovery, precision=precision, labels=labels, total_steps=total, seed=seed,
        steps_per_epoch=loader.steps_per_epoch, multi_label=data.multi_label, mean=mean, std=std,
    )  # fmt: skip
    fixed = {"recovery": recovery, "labels": labels, "steps": total, "seed": seed, "precision": precision}
    folder = RunFolder(out, fixed)
    stopwatch = Stopwatch()
    with quiet():
        trainer = make_trainer(task.settings, folder, stopwatch, progress=progress and sys.stdout.isatty())
    trainer.limit_train_batches = total
    trainer.val_check_interval = min(loader.steps_per_epoch, math.ceil(total / _VALIDATIONS))
    trainer.log_every_n_steps = min(10, total)  # type: ignore[attr-defined]
    folder.begin()
    checkpoint = folder.path / "checkpoints" / LAST
    with quiet(), _as_it_was(teacher):
        try:
            trainer.fit(task, datamodule=loader, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
    if task.ema is not None:
        averaged: Any = task.final_model
        student.load_state_dict(averaged.net.state_dict())
    student.eval()
    return {
        "steps": total,
        "epochs": total / loader.steps_per_epoch,
        "seconds": stopwatch.seconds,
        "images_per_second": stopwatch.images_per_second,
        "precision": precision,
        "history": task.history,
    }


_VALIDATIONS = 4  # at least, over the run


def steps_of(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Batches of a training that is given in epochs or in batches.

    Raises:
        ValueError: Both are given, or one that is not above 0.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs ({epochs:g}) and steps ({steps}) are two lengths of the training: give one of them")
    if steps is not None and steps < 1:
        raise ValueError(f"steps ({steps}) must be at least 1")
    if epochs is not None and not epochs > 0:
        raise ValueError(f"epochs ({epochs:g}) must be above 0, such as 0.5 or 3")
    return steps if steps is not None else max(1, round((1.0 if epochs is None else epochs) * steps_per_epoch))


def default_precision(accelerator: str) -> Precision:
    """bf16 where a GPU computes with it, else float32."""
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Afterwards the model is on the device and in the mode that it was in."""
    place = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        model.to(place)
        for module, training in modes:
            module.training = training
