"""How a model is trained, as settings that are checked before anything long begins."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

from patchmerger.data.settings import Augmentation, DataSettings, OwnData
from patchmerger.models.settings import Merge, MergeSettings, ModelSettings
from patchmerger.runs.checks import check_above, check_at_least, check_choices

Loss = Literal["softmax", "sigmoid"]
LoggerName = Literal["csv", "tensorboard", "wandb", "none"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed"]


_DEVICES = r"auto|-1|[1-9]\d*|(\d+,)+\d*"  # as Lightning takes them


def check_optimizer(name: str, optimizer: str) -> None:
    """Raise ``ValueError`` where timm has no such optimiser, with the name of the setting."""
    if optimizer in ("adamw", "sgd", "lamb"):
        return
    from timm.optim import list_optimizers  # timm imports torch

    if optimizer not in list_optimizers():
        raise ValueError(f"{name} ({optimizer!r}) is not one of timm's: try 'adamw' or 'sgd'")


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained.

    Args:
        epochs: Passes over the training images.
        batch_size: Images in a batch, on each device.
        optimizer: An optimiser of timm, such as "adamw", "muon", "sgd", "lamb".
        lr: The highest learning rate.
        merger_lr: Factor on it for the mergers.
        min_lr: The learning rate at the end of the cosine.
        warmup_epochs: Epochs over which the learning rate rises, also a part of one; 1 if not given, and a fifth of
            the training where it has fewer than five epochs.
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
        logger: Where the training curve is written as well as in the results: "csv", "tensorboard" or "wandb" (Weights
            & Biases, if it is installed); "none" writes none.
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
        devices: How many devices, "auto" or -1 for all, or a list of their numbers such as "0,1".
        strategy: "auto"; "ddp", whole weights on each device; or "fsdp", weights shared out over the devices (FSDP2).
        num_nodes: How many machines.
    """

    epochs: int = 14
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 3e-3
    merger_lr: float = 1.0
    min_lr: float = 0.0
    warmup_epochs: float | None = None
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
    logger: LoggerName = "csv"
    accelerator: str = "auto"
    devices: int | str = 1
    strategy: str = "auto"
    num_nodes: int = 1

    def __post_init__(self) -> None:
        check_choices(self, "training.")
        check_at_least(
            1, self, "epochs", "batch_size", "accumulate", "checkpoint_every", "num_nodes", prefix="training."
        )
        if self.warmup_epochs is not None and not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                f"training.warmup_epochs ({self.warmup_epochs:g}) must be from 0 to below training.epochs "
                f"({self.epochs}): leave it out for a warm-up that fits"
            )
        check_above(0, self, "lr", "merger_lr", prefix="training.")
        check_at_least(0, self, "min_lr", "weight_decay", "mixup", "cutmix", "clip_grad", prefix="training.")
        for name in ("ema", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name} ({getattr(self, name)}) must be from 0 (off) to below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"training.layer_decay ({self.layer_decay}) must be above 0 and at most 1, such as 0.75")
        check_optimizer("training.optimizer", self.optimizer)
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"training.batch_size ({self.batch_size}) must be even for mixup and cutmix")
        if not re.fullmatch(_DEVICES, str(self.devices)):
            raise ValueError(
                f"training.devices ({self.devices!r}) must be a number of devices, at least 1, 'auto' for all, or a "
                "list of their numbers, such as '0,1'"
            )
        self._check_strategy()

    @property
    def warmup(self) -> float:
        """Epochs over which the learning rate rises."""
        return min(1.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    def check(self, *, multi_label: bool) -> None:
        """Raise ``ValueError`` for settings that these images cannot be trained with, naming the cure.

        Args:
            multi_label: Whether an image may have several labels.
        """
        if multi_label and self.loss != "sigmoid":
            raise ValueError("training.loss ('softmax') takes one label an image, these have several: use 'sigmoid'")
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
            raise ValueError("training.compile is not supported with training.strategy 'fsdp': use 'ddp' or no compile")


def check_data(name: str, data: object) -> None:
    """Raise ``TypeError`` for images that are no settings."""
    if not isinstance(data, DataSettings | OwnData):
        raise TypeError(
            f"{name} ({type(data).__name__}) must be DataSettings(source); images of one's own are given beside the "
            f"settings, as the argument {name} of the function"
        )


@dataclass(frozen=True)
class Recipe:
    """What determines a training besides its seed and its folder.

    Args:
        data: The images.
        model: The Vision Transformer; with init only img_size, depth (first blocks) and drop
            rates of args, where init is not a safetensors file, which holds weights alone.
        merge: The merger; "--merge null" trains the plain model. "auto" is the default merger, and with init the
            model as it was saved: merge.… then puts a merger into a plain one.
        init: What to start from: a folder that patchmerger saved, the folder of a run, an architecture of timm with
            its weights, "user/name" on the Hugging Face Hub, or a safetensors file. If not given, model.… is trained.
        image_size: Height and width of the images in pixels; the model's own if not given.
        augmentation: How training images are varied; padded crops and flips if not given (digits: none).
        training: How the model is trained.

    Raises:
        TypeError: Images that are no ``DataSettings``; those of one's own are given beside a recipe.
        ValueError: Two image sizes.
    """

    data: DataSettings | OwnData = DataSettings()
    model: ModelSettings = field(default_factory=ModelSettings)
    merge: Merge = "auto"
    init: str | Path | None = None
    image_size: int | None = None
    augmentation: Augmentation | None = None
    training: TrainingSettings = TrainingSettings()

    def __post_init__(self) -> None:
        check_data("data", self.data)
        self.model.sized(self.image_size)
        if (channels := self.model.args.get("in_chans", 3)) != 3:
            raise ValueError(
                f"model.args: in_chans ({channels}) must be 3, or left out: images are read in colour, and grey ones "
                "with three channels alike"
            )

    def resolved(self, *, model_given: bool = False) -> Self:
        """The same with every default that depends on other settings in its place.

        Where a model is given, in memory, it stays as it is unless a merger is asked for.
        """
        made = self.init is None and not model_given
        merge = MergeSettings() if made and self.merge == "auto" else self.merge
        if made and not self.model.pretrained and isinstance(merge, MergeSettings):
            merge = merge.from_scratch()
        return replace(
            self,
            model=self.model.sized(self.image_size),
            merge=merge,
            augmentation=(self.augmentation or Augmentation()).resolved(self.data.source),
        )


@dataclass(frozen=True)
class FitSettings(Recipe):
    """What fixes one run of ``fit``, recorded in its folder: a recipe without open defaults, and a seed.

    Args:
        seed: Fixes the weights at the start, the order of the images and all randomness.
    """

    seed: int = 0
