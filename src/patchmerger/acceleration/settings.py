"""What a user can say about the recovery of accuracy after a merger went into a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from timm.optim import list_optimizers

from patchmerger.training.settings import Precision, TrainingSettings

_RATE = 0.064


@dataclass(frozen=True)
class RecoverySettings:
    """How accuracy is won back: a short training in which the plain model is the teacher.

    Args:
        lr: The highest learning rate of all but the mergers; by default 0.064 / features of a token (1e-3 for 64 of
            them, 8e-5 for 768), as the best rate falls with the width of a model (arXiv 2203.03466).
        merger_lr: Factor on it for the mergers.
        merger_first: Share of the steps in which the mergers learn alone; then the rest joins in.
        warmup: Share of the steps over which each learning rate rises.
        batch_size: Images in a batch.
        temperature: Of the teacher's and the student's scores where they are compared.
        teacher_weight: Weight of the teacher's scores in the loss.
        feature_weight: Weight of the teacher's pooled features.
        label_weight: Weight of the labels; without labels it must be 0. By default 0.5, and 0 without labels.
        optimizer: An optimiser of timm, such as "adamw", "sgd", "lamb".
        weight_decay: Weight decay, on matrices only, as in training.
        clip_grad: Highest norm of the gradient; 0 is off.
        ema: Decay of the moving average of the weights, which is then what is kept; 0 is off.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed"; by default bf16-mixed on a GPU that has it.
        checkpoint_every: Batches between two checkpoints.
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
    """

    lr: float | None = None
    merger_lr: float = 10.0
    merger_first: float = 0.1
    warmup: float = 0.1
    batch_size: int = 64
    temperature: float = 2.0
    teacher_weight: float = 1.0
    feature_weight: float = 1.0
    label_weight: float | None = None
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    ema: float = 0.0
    precision: Precision | None = None
    checkpoint_every: int = 200
    accelerator: str = "auto"

    def weight_of_labels(self, labels: bool) -> float:
        """Weight of the labels in the loss."""
        return (0.5 if labels else 0.0) if self.label_weight is None else self.label_weight

    def check(self, *, labels: bool) -> None:
        """Raise ``ValueError`` for settings that cannot train, naming the setting and the way out."""
        for name in ("lr", "merger_lr", "temperature"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"recovery.{name} ({getattr(self, name)}) must be above 0")
        for name in ("merger_first", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"recovery.{name} ({getattr(self, name)}) must be a share of the steps, from 0 to below 1"
                )
        if self.batch_size < 1:
            raise ValueError(f"recovery.batch_size ({self.batch_size}) must be at least 1")
        weights = [self.teacher_weight, self.feature_weight, self.weight_of_labels(labels)]
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"recovery.teacher_weight, feature_weight and label_weight ({weights}) must be 0 or more, and not all 0"
            )
        if self.weight_of_labels(labels) and not labels:
            raise ValueError(
                f"recovery.label_weight ({self.label_weight}) needs labels, and there are none: leave it out, so "
                "that the plain model alone is the teacher"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"recovery.ema ({self.ema}) must be from 0 (off) to below 1, such as 0.999")
        if self.optimizer not in list_optimizers():
            raise ValueError(f"recovery.optimizer ({self.optimizer!r}) is not one of timm's: try 'adamw' or 'sgd'")

    def rate(self, dim: int) -> float:
        """The highest learning rate for a model with ``dim`` features of a token."""
        return _RATE / dim if self.lr is None else self.lr

    def as_training(self, precision: Precision, *, dim: int, multi_label: bool = False) -> TrainingSettings:
        """What the training task and its trainer need of it."""
        return TrainingSettings(
            epochs=1,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.rate(dim),
            warmup_epochs=0,
            weight_decay=self.weight_decay,
            loss="sigmoid" if multi_label else "softmax",
            clip_grad=self.clip_grad,
            ema=self.ema,
            precision=precision,
            checkpoint_every=self.checkpoint_every,
            accelerator=self.accelerator,
        )
