"""What a user can say about an acceleration: where to merge, how the queries begin, how accuracy is recovered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from patchmerger.mechanism.options import Positions
from patchmerger.reducers.names import ReducerName
from patchmerger.runs.checks import check_above, check_at_least, check_choices
from patchmerger.training.settings import Precision, TrainingSettings, check_optimizer

QueryInit: TypeAlias = Literal["best", "located", "soft", "reconstruction", "random"]
"""How the queries of a merger in a trained model begin; ``calibrate`` explains each."""

Scope: TypeAlias = Literal["rear", "all", "rear-then-all"]
"""What a recovery trains: what follows the first merge, all, or one after the other."""

CacheDtype: TypeAlias = Literal["bfloat16", "float32"]
"""What kept tokens are stored as."""

_RATE = 0.02


@dataclass(frozen=True)
class PlacementSettings:
    """Where to merge.

    Args:
        speedup: Wanted speed-up, predicted by FLOPs; the merge comes as late as it allows. 2 if nothing is given.
        after: In its place the block to merge after, counted from 1.
        num_tokens: Tokens that go on; chosen with the placement if not given.
        positions: As in insert; by default what the model needs.
        measure: Let a measurement on this machine reach the speed-up, rather than the prediction.
        candidates: Placements that are compared: the latest that reaches the speed-up, and earlier ones with more
            tokens; 1 takes the latest. 4 if not given, where they can be compared.
        compare: By how little the merged model differs from the plain one: "untrained", on some training images, where
            it begins at nothing drawn at random; or "recovered" for a fifth of the length each, on held-out ones.
        rounds: Rounds of the speed measurement, in which both models are timed in turn.
        reducer: The method that reduces tokens, such as "patchmerger", "tome" or "topk"; one that works inside a block
            does so in the block after. By default "patchmerger", and "dpcknn", which works untrained, where no recovery
            follows.
    """

    speedup: float | None = None
    after: int | None = None
    num_tokens: int | None = None
    positions: Positions | None = None
    measure: bool = False
    candidates: int | None = None
    compare: Literal["untrained", "recovered"] = "untrained"
    rounds: int = 10
    reducer: ReducerName | None = None

    def __post_init__(self) -> None:
        if self.speedup is not None and self.after is not None:
            raise ValueError(
                f"speedup ({self.speedup:g}) and after ({self.after}) both say where to merge: give one of them"
            )
        check_above(1, self, "speedup")
        check_at_least(1, self, "after", "num_tokens", "candidates", "rounds")
        compared = f"candidates ({self.candidates})" if (self.candidates or 1) > 1 else None
        compared = "compare ('recovered')" if self.compare == "recovered" else compared
        if compared and (self.measure or self.after is not None):
            other = "measure (true)" if self.measure else f"after ({self.after})"
            raise ValueError(f"{compared} and {other} both choose the placement: give one of them")
        if self.compare == "recovered" and self.candidates == 1:
            raise ValueError("compare ('recovered') compares placements, and candidates (1) is one: give 2 or more")
        check_choices(self)


@dataclass(frozen=True)
class QueryInitSettings:
    """How the queries of the merger begin.

    Args:
        method: "located", "soft", "reconstruction" or "random"; "best" is "located" where a recovery follows (or
            "soft", for a model whose patches have no known grid), else "reconstruction".
        images: Training images that it is computed from, without labels.
    """

    method: QueryInit = "best"
    images: int = 512

    def __post_init__(self) -> None:
        if self.method not in get_args(QueryInit):
            raise ValueError(f"query_init ({self.method!r}) must be one of {', '.join(map(repr, get_args(QueryInit)))}")
        if self.images < 2:
            raise ValueError(f"calibration_images ({self.images}) must be at least 2; some hundreds are good")


@dataclass(frozen=True)
class RecoverySettings:
    """How accuracy is recovered: a short training in which the plain model is the teacher.

    Args:
        scope: "rear" trains the merger and what follows it, on tokens that the blocks before it computed once; "all"
            trains the whole model; "rear-then-all" does both, with a fifth of the length for all.
        epochs: Length in passes over the training images, also a part of one; 0 for no training. 1 if no length is
            given.
        steps: In its place the number of batches.
        budget: In its place the time for it, such as 10min, 90s or 2h; of the rear, keeping tokens is part of it.
        views: For the rear, views of each training image that are kept: the first as in evaluation, further ones
            varied as in training. By default as many as length and cache_gib allow, up to 8.
        cache_gib: Kept tokens of training images take no more than this many GiB of disk, those of held-out images no
            more than half as much: a quarter to watch the training, a quarter to evaluate; fewer images are kept, or
            watched by, where they would.
        cache_dtype: Of kept tokens: "bfloat16", or "float32" at twice the size.
        keep_cache: Leave kept tokens on disk afterwards.
        frozen_blocks: For the rear, the number of blocks that are frozen, whose tokens are kept; by default those up to
            the first merge. 0 trains all blocks, on the tokens that enter the first one.
        lr: The highest learning rate of all but the mergers; by default 0.02 / features of a token (3e-4 for 64 of
            them, 2.6e-5 for 768), as the best rate falls with the width of a model (arXiv 2203.03466).
        merger_lr: Factor on it for the mergers.
        prior_lr: The highest learning rate of the places, widths and gains of located queries, whose sizes do not
            depend on the width of a model.
        merger_first: Share of the steps in which the mergers learn alone; then the rest joins in.
        warmup: Share of the steps over which each learning rate rises; that of the mergers, where they learn alone
            first, over that share of those steps.
        batch_size: Images in a batch.
        temperature: Of the teacher's and the student's scores where they are compared.
        teacher_weight: Weight of the teacher's scores in the loss.
        feature_weight: Weight of the teacher's pooled features.
        label_weight: Weight of the labels; without labels it must be 0. By default 0.5, and 0 without labels.
        mixup: Alpha of mixup (arXiv 1710.09412): both models see the same mixtures of two images, or of the kept tokens
            of two, as in arXiv 2106.05237. The plain model then runs at every step. 0 is off.
        optimizer: An optimiser of timm, such as "adamw", "muon", "sgd", "lamb".
        weight_decay: Weight decay, on matrices only, as in training.
        clip_grad: Highest norm of the gradient; 0 is off.
        ema: Decay of the moving average of the weights, which is then what is kept; 0 is off.
        precision: "32-true", "bf16-mixed", "bf16-true" or "16-mixed"; by default bf16-mixed where the device is fast
            at it.
        checkpoint_every: Batches between two checkpoints.
        accelerator: "auto", "cpu", "gpu", ... as Lightning has it.
    """

    scope: Scope = "rear"
    epochs: float | None = None
    steps: int | None = None
    budget: str | None = None
    views: int | None = None
    cache_gib: float = 4.0
    cache_dtype: CacheDtype = "bfloat16"
    keep_cache: bool = False
    frozen_blocks: int | None = None
    lr: float | None = None
    merger_lr: float = 50.0
    prior_lr: float = 0.02
    merger_first: float = 0.25
    warmup: float = 0.1
    batch_size: int = 64
    temperature: float = 2.0
    teacher_weight: float = 1.0
    feature_weight: float = 1.0
    label_weight: float | None = None
    mixup: float = 0.0
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    clip_grad: float = 1.0
    ema: float = 0.0
    precision: Precision | None = None
    checkpoint_every: int = 200
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        check_choices(self, "recovery.")
        if self.budget is not None:
            seconds_of(self.budget)
        lengths = {name: getattr(self, name) for name in ("epochs", "steps", "budget")}
        given = [f"{name} ({value})" for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} bound the recovery: give one of them")
        if self.epochs is not None and not self.epochs >= 0:
            raise ValueError(f"epochs ({self.epochs:g}) must be 0 (no training) or more, such as 0.5")
        check_above(0, self, "lr", "merger_lr", "prior_lr", "temperature", "cache_gib", prefix="recovery.")
        for name in ("merger_first", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"recovery.{name} ({getattr(self, name)}) must be a share of the steps, from 0 to below 1"
                )
        check_at_least(1, self, "batch_size", "checkpoint_every", "steps", "views", prefix="recovery.")
        check_at_least(0, self, "frozen_blocks", "mixup", prefix="recovery.")
        if self.frozen_blocks is not None and self.scope == "all":
            raise ValueError(
                f"recovery.frozen_blocks ({self.frozen_blocks}) is for scope 'rear' and 'rear-then-all': 'all' trains "
                "every block"
            )
        weights = [self.teacher_weight, self.feature_weight, self.weight_of_labels(labels=True)]
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"recovery.teacher_weight, feature_weight and label_weight ({weights}) must be 0 or more, and not all 0"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"recovery.ema ({self.ema}) must be from 0 (off) to below 1, such as 0.999")
        check_optimizer("recovery.optimizer", self.optimizer)

    def weight_of_labels(self, labels: bool) -> float:
        """Weight of the labels in the loss.

        Raises:
            ValueError: One is given, and there are no ``labels``; or nothing but labels was to be learned from.
        """
        if self.label_weight and not labels:
            raise ValueError(
                f"recovery.label_weight ({self.label_weight}) needs labels, and there are none: leave it out, so "
                "that the plain model alone is the teacher"
            )
        if not labels and self.teacher_weight == self.feature_weight == 0:
            raise ValueError(
                "recovery.teacher_weight and feature_weight (0) leave the labels to learn from, and there are none"
            )
        return (0.5 if labels else 0.0) if self.label_weight is None else self.label_weight

    @property
    def seconds(self) -> float | None:
        """The budget in seconds; ``None`` where there is none."""
        return None if self.budget is None else seconds_of(self.budget)

    def three_times_as_long(self, epochs: float) -> str:
        """The option for a recovery three times as long as this one, which took ``epochs``."""
        if self.seconds is None:
            return f"--epochs {max(1.0, round(3 * epochs, 2)):g}"
        return f"--budget {3 * self.seconds / 60:g}min"

    def steps_for(self, images: int) -> int:
        """Batches, where these do not depend on a budget: of ``steps``, or of ``epochs`` over so many images."""
        if self.steps is not None:
            return self.steps
        return max(1, round((1.0 if self.epochs is None else self.epochs) * (images // self.batch_size)))

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


def seconds_of(budget: str) -> float:
    """Seconds in a time such as 10min, 90s, 2h.

    Raises:
        ValueError: It is no such time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)\s*", budget)
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"budget ({budget!r}) must be a time above 0 with its unit, such as 10min, 90s or 2h")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match[2]]
