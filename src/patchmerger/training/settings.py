"""How a model is trained, as settings that are checked before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timm.optim import list_optimizers

Loss = Literal["softmax", "sigmoid"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Args:
        epochs: Passes over the training images.
        batch_size: Images in a batch, on each device.
        optimizer: An optimiser of timm, such as "adamw", "sgd", "lamb".
        lr: The highest learning rate.
        merger_lr: Factor on it for the mergers.
        min_lr: The learning rate at the end of the cosine.
        warmup_epochs: Epochs over which the learning rate rises.
        weight_decay: Weight decay, on matrices only: not on norms, biases, position embeddings and queries.
        decay_queries: Decay the mergers' queries too.
        layer_decay: Factor on the learning rate from a block to the one before it (for fine-tuning: 0.65-0.8).
        loss: "softmax", or "sigmoid" for one label an image or several: binary cross-entropies, summed over the
            classes and averaged over the images.
        label_smoothing: Share of the target that is spread over all classes; with several labels an image, by which
            each 0 and 1 moves towards 1/2.
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off.
        clip_grad: Highest norm of the gradient; 0 is off.
        ema: Decay of the moving average of the weights, which is then what is evaluated and saved; 0 is off.
        accumulate: Batches whose gradients are added up for one step of the optimiser.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed".
        compile: Compile the model with torch.compile.
        checkpoint_every: Batches between two checkpoints; there is one after every epoch as well.
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
        devices: How many devices, as Lightning has it.
        strategy: "auto"; "ddp", whole weights on each device; or "fsdp", weights shared out over the devices (FSDP2).
        num_nodes: How many machines.
    """

    epochs: int = 14
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 3e-3
    merger_lr: float = 1.0
    min_lr: float = 0.0
    warmup_epochs: int = 1
    weight_decay: float = 0.05
    decay_queries: bool = False
    layer_decay: float | None = None
    loss: Loss = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_grad: float = 1.0
    ema: float = 0.0
    accumulate: int = 1
    precision: Precision = "32-true"
    compile: bool = False
    checkpoint_every: int = 200
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1

    def check(self, *, multi_label: bool) -> None:
        """Raise ``ValueError`` for settings that cannot train, naming the setting and the way out."""
        if self.epochs < 1:
            raise ValueError(f"training.epochs ({self.epochs}) must be at least 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"training.warmup_epochs ({self.warmup_epochs}) must be below training.epochs ({self.epochs})"
            )
        if self.accumulate < 1:
            raise ValueError(f"training.accumulate ({self.accumulate}) must be at least 1")
        for name in ("lr", "merger_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name} ({getattr(self, name)}) must be above 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"training.ema ({self.ema}) must be from 0 (off) to below 1, such as 0.999")
        if self.optimizer not in list_optimizers():
            raise ValueError(f"training.optimizer ({self.optimizer!r}) is not one of timm's: try 'adamw' or 'sgd'")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"training.batch_size ({self.batch_size}) must be even for mixup and cutmix")
        self._check_strategy()
        if multi_label and self.loss != "sigmoid":
            raise ValueError(
                "training.loss ('softmax') takes one label an image, and these have several: use 'sigmoid'"
            )
        if multi_label and (self.mixup or self.cutmix):
            raise ValueError("training.mixup and training.cutmix take one label an image, and these have several")

    def _check_strategy(self) -> None:
        """Refuse what could not be saved, or has not been shown to train."""
        name = self.strategy
        if name != "fsdp" and name.startswith(("fsdp", "deepspeed", "model_parallel")):
            raise ValueError(f"training.strategy ({name!r}) is not supported: 'fsdp' shares weights out (FSDP2)")
        if name == "fsdp" and self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"training.precision ({self.precision!r}) with strategy 'fsdp': use 32-true or bf16-mixed")
        if name == "fsdp" and self.compile:
            raise ValueError(
                "training.compile is not supported with training.strategy 'fsdp': use 'ddp', or no compile"
            )
