"""The training task: loss, optimiser, schedule and randomness of a ViT, merged or not, on Lightning."""

from __future__ import annotations

import copy
import math
import random
import statistics
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_average_precision, multiclass_accuracy

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import normalize
from patchmerger.reducers.dynamicvit import DynamicViT
from patchmerger.training.optimizer import make_optimizer
from patchmerger.training.settings import TrainingSettings
from patchmerger.training.sharding import ShardedStrategy, full, shard

T = TypeVar("T")


class TrainingTask(pl.LightningModule):
    """Trains a model that gives class scores (B, C) on batches of (uint8 images, targets).

    Order and randomness are functions of (seed, step): before every step the random state is set anew, so that a run
    that was interrupted and one that was not see the same dropout, mixup and stochastic depth.

    With ``multi_label`` targets are (B, C), several labels an image, instead of (B,).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        *,
        seed: int,
        steps_per_epoch: int,
        num_classes: int,
        multi_label: bool = False,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        settings.check(multi_label=multi_label)
        scaled = settings.precision == "16-mixed" or settings.accumulate > 1
        if scaled and any(isinstance(module, DynamicViT) for module in model.modules()):
            raise ValueError(
                f"training.precision ({settings.precision!r}) and training.accumulate ({settings.accumulate}) multiply "
                "the loss, but not that of DynamicViT on the share of kept tokens: train it with another precision "
                "than '16-mixed', without accumulation, or choose another reducer"
            )
        self.model = model
        self.settings = settings
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.preprocessing = preprocessing
        self.mix = _mixup(settings, num_classes)
        self.loss = _loss(settings, mixes=self.mix is not None, multi_label=multi_label)
        self.ema = ModelEmaV3(model, decay=settings.ema) if settings.ema else None
        self.history: list[dict[str, float | None]] = []
        self._losses: list[float] = []  # of the batches since the last line
        if settings.compile:
            model.compile()

    @property
    def final_model(self) -> nn.Module:
        """The model to evaluate and to save: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 → floats with the mean and standard deviation of the model's input."""
        dtype = next(self.model.parameters()).dtype
        return normalize(images, self.preprocessing).to(dtype)

    def configure_model(self) -> None:
        """Share the weights out over the devices where the strategy is to."""
        if isinstance(self.trainer.strategy, ShardedStrategy):
            for model in (self.model, *([] if self.ema is None else [self.ema.module])):
                shard(model, self.device_mesh["data_parallel"])  # type: ignore[index]

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, C) of uint8 images (B, 3, S, S), by the final model."""
        scores: Tensor = self.final_model(self.normalize(images))
        return scores.float()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_step(self.seed, batch_idx, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch: normalise, mix, predict, compare."""
        images, targets = batch
        images = self.normalize(images)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        scores = self.model(images).float()  # (B, C)
        loss: Tensor = self.loss(scores, targets)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at {self._where(batch_idx)}: {_WAY_OUT}")
        self.note_loss(loss)
        return loss

    def note_loss(self, loss: Tensor) -> None:
        """Show the loss of a batch, and keep it for the mean in the history."""
        self.log("train_loss", loss.detach(), prog_bar=True)
        self._losses.append(loss.item())

    def on_after_backward(self) -> None:
        """Without validation, note the end of an epoch: before the end of the batch, when it is kept."""
        interval = self.trainer.val_check_interval
        ends = isinstance(interval, int) and (self.trainer.fit_loop.total_batch_idx + 1) % interval == 0
        if ends and not self.trainer.enable_validation:
            self._note_epoch(None)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm, and stop where a gradient is not finite (fp16 scaling skips such steps itself)."""
        norm = full(nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad or float("inf")))
        if self.settings.precision != "16-mixed" and not torch.isfinite(norm):
            bad = [
                name
                for name, p in self.model.named_parameters()
                if p.grad is not None and not torch.isfinite(full(p.grad)).all()
            ]
            raise FloatingPointError(
                f"the gradient of {bad[0] if bad else 'the model'} is not finite at "
                f"{self._where(self.trainer.fit_loop.batch_idx)}: {_WAY_OUT}"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then average: a checkpoint holds both."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect scores; the metric is computed over all of them."""
        images, targets = batch
        self._scores.append((self(images).cpu(), targets.cpu()))

    def on_validation_epoch_start(self) -> None:
        self._scores: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_end(self) -> None:
        """Compute the metric over all images, of all devices."""
        parts = [part for share in gather(self._scores) for part in share]
        scores, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        value = score(scores, targets)
        self.log("val_metric", value, prog_bar=True, sync_dist=False, rank_zero_only=True)
        if not self.trainer.sanity_checking:
            self._note_epoch(value)

    def _note_epoch(self, value: float | None) -> None:
        """A line of the history, with the validation metric where there is one."""
        step = self.trainer.fit_loop.total_batch_idx + 1
        losses = [loss for share in gather(self._losses) for loss in share]
        loss = statistics.fmean(losses) if losses else math.nan
        self.history.append({"epoch": step / self.steps_per_epoch, "val_metric": value, "train_loss": loss})
        self._losses = []

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        images, targets = batch
        return self(images).cpu(), targets.cpu()

    def configure_optimizers(self) -> Any:
        """The optimiser and schedule of timm, updated at every step."""
        optimizer, scheduler = make_optimizer(self.model, self.settings, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As timm's schedulers want it; they know layer-wise factors."""
        scheduler.step_update(num_updates=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = copy.deepcopy(self.history)
        checkpoint["losses"] = list(self._losses)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])
        self._losses = list(checkpoint.get("losses", ()))

    def _where(self, batch_idx: int) -> str:
        return f"step {batch_idx + 1} (epoch {batch_idx // self.steps_per_epoch + 1})"


_WAY_OUT = "lower training.lr, raise training.warmup_epochs, set training.clip_grad, or use precision '32-true'"


def score(scores: Tensor, targets: Tensor) -> float:
    """Accuracy of scores (B, C) for targets (B,), or mean average precision for (B, C) of zeros and ones: 0 to 1.

    The mean is over the classes that some image has: the precision of others is not defined.
    """
    if targets.ndim == 1:
        return float(multiclass_accuracy(scores, targets, num_classes=scores.shape[1], average="micro"))
    scores = scores.double()
    ranked = 0.5 + 0.5 * scores / (1 + scores.abs())  # in their order, from 0 to 1: a sigmoid makes large ones alike
    columns = zip(ranked.T, targets.int().T, strict=True)
    found = [float(binary_average_precision(column, wanted)) for column, wanted in columns if wanted.any()]
    return sum(found) / len(found) if found else 0.0


def gather(value: T) -> list[T]:
    """The ``value`` of every process, in the order of their ranks."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Set the random state of torch, numpy and Python as a function of (seed, step, rank)."""
    state = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    torch.manual_seed(state)
    np.random.seed(state % 2**32)
    random.seed(state)


def _mixup(settings: TrainingSettings, num_classes: int) -> Mixup | None:
    if not (settings.mixup or settings.cutmix):
        return None
    return Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=num_classes,
    )


def _loss(settings: TrainingSettings, *, mixes: bool, multi_label: bool) -> nn.Module:
    if settings.loss == "sigmoid":
        # Mixed targets come smoothed, those of several labels as zeros and ones.
        return BinaryCrossEntropy(smoothing=settings.label_smoothing, sum_classes=True, smooth_dense=multi_label)
    if mixes:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(settings.label_smoothing)
