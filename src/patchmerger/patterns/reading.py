"""What a model does to the patches of images: which it keeps, which it puts together, and the features in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from patchmerger.costs.model_cost import cost
from patchmerger.data import ImageSet, Preprocessing
from patchmerger.fewshot.features import extract_features
from patchmerger.hosts.example_inputs import square_input
from patchmerger.insertion.inserted import mergers
from patchmerger.maps.reading import MergerMaps, read_maps
from patchmerger.models.classifier import Classifier
from patchmerger.reducers.names import method_of

_ONE = 1 - 1e-4
"""A weight from which on a token is one patch and nothing else, as rounding leaves it."""


@dataclass(frozen=True)
class StagePatterns:
    """What one merger does to the patches, over all images (n, rows × columns = N).

    Attributes:
        after: The block that it stands after, counted from 1.
        num_tokens: Tokens that go on, M.
        method: The name of its method, or of its class.
        grid: Rows and columns of patches.
        kept: Which patches go on as they are, (n, N) bool, through all mergers so far; ``None`` for a method that mixes
            more than one token a merger (EViT's fused one is allowed).
        group: The token that takes most of each patch, (n, N) int64; ``None`` for a method that drops patches.
        usage: How much of each patch goes on, (rows, columns), mean over images; 1 is its share.
    """

    after: int
    num_tokens: int
    method: str
    grid: tuple[int, int]
    kept: Tensor | None = field(repr=False)
    group: Tensor | None = field(repr=False)
    usage: Tensor = field(repr=False)


@dataclass(frozen=True)
class ModelPatterns:
    """What a model does to images.

    Attributes:
        name: What to call it.
        features: Pooled features that its last layer classifies, (n, D).
        predictions: Classes, (n,).
        stages: Its mergers, first to last; empty for a plain model.
        flops: Of one image; 1 multiply-add = 2 FLOPs.
    """

    name: str
    features: Tensor = field(repr=False)
    predictions: Tensor = field(repr=False)
    stages: tuple[StagePatterns, ...]
    flops: int


def read_patterns(
    name: str,
    model: nn.Module,
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> ModelPatterns:
    """Run a model over images, and read its merge maps as it goes.

    Args:
        name: What to call it.
        model: A classifier, with mergers or without, on the device to work on; it is left as it was.
        images: The images.
        preprocessing: How they are resized, cropped and normalised.
        batch_size: Images in a batch.
        workers: Processes that load images; chosen by the number of cores by default.
        progress: Show a progress bar, on a terminal.

    Raises:
        ValueError: The model is no classifier of images, or a merger does not tell its weights.
    """
    reader = _Reader(bool(mergers(model)))
    classifier = Classifier(model)
    if not classifier.gives_scores:
        raise ValueError(f"model ({name}) gives features and no scores of classes, so it has no accuracy to compare")
    (features,) = extract_features(
        classifier, [images], image_size=square_input(model), preprocessing=preprocessing, features=reader.read,
        batch_size=batch_size, workers=workers, progress=progress,
    )  # fmt: skip
    stages = tuple(_stage(model, [maps[i] for maps in reader.maps], i) for i in range(len(mergers(model))))
    return ModelPatterns(name, features, torch.cat(reader.predictions), stages, cost(model).flops)


class _Reader:
    """Takes the features of each batch, and keeps what else there is to see."""

    def __init__(self, merges: bool) -> None:
        self.merges = merges
        self.predictions: list[Tensor] = []
        self.maps: list[list[_Seen]] = []

    def read(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features (B, D) of a classifier."""
        classifier, given = cast(Classifier, model), list[tuple[Tensor, Tensor]]()
        if self.merges:
            maps = read_maps(classifier.net, images, run=lambda: given.append(classifier.with_features(images)))
            self.maps.append([_Seen.of(found, mixed=number) for number, found in enumerate(maps, start=1)])
        scores, features = given[0] if given else classifier.with_features(images)
        self.predictions.append(scores.argmax(dim=1).cpu())
        return features


@dataclass(frozen=True)
class _Seen:
    """What is kept of the maps (B, M, rows, columns) of one merger and batch."""

    kept: Tensor
    selects: bool
    group: Tensor
    covers: bool
    usage: Tensor

    @staticmethod
    def of(found: MergerMaps, mixed: int) -> _Seen:
        """What is kept of them; a method that keeps patches may mix so many tokens."""
        weights = found.maps.flatten(2).float()  # (B, M, N)
        num_tokens, num_patches = weights.shape[1:]
        most = weights.amax(dim=2, keepdim=True)  # (B, M, 1)
        single = most >= _ONE  # a token that is one patch
        kept = ((weights >= _ONE) & single).any(dim=1)  # (B, N)
        taken = weights.sum(dim=1)  # (B, N)
        return _Seen(
            kept.cpu(),
            bool((single.sum(dim=1) >= num_tokens - mixed).all()) and num_tokens > mixed,
            weights.argmax(dim=1).cpu(),
            bool((taken > 0).all()),
            (taken * num_patches / num_tokens).sum(dim=0).reshape(found.maps.shape[2:]).cpu(),
        )


def _stage(model: nn.Module, seen: Sequence[_Seen], number: int) -> StagePatterns:
    merger = mergers(model)[number]
    kept, group = torch.cat([one.kept for one in seen]), torch.cat([one.group for one in seen])
    usage = torch.stack([one.usage for one in seen]).sum(dim=0) / len(kept)
    return StagePatterns(
        after=merger.after,
        num_tokens=merger.num_tokens,
        method=method_of(merger.module) or type(merger.module).__name__,
        grid=(usage.shape[0], usage.shape[1]),
        kept=kept if all(one.selects for one in seen) else None,
        group=group if all(one.covers for one in seen) else None,
        usage=usage,
    )
