"""What a prediction needs of a model, in whatever form it is: its scores, its features, and what is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier, find_classifier
from patchmerger.runs.environment import find_device

_IMAGENET_CLASSES = 1000


class Scorer(Protocol):
    """A model that scores prepared images, whatever it runs on.

    Attributes:
        remark: Where the names of classes are from, where neither the model nor the user gives them.
        only_scores: Why it gives no features; ``None`` where it gives them.
        only_softmax: Why its scores have no sigmoid; ``None`` where they have.
    """

    name: str
    image_size: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    remark: str | None
    multi_label: bool
    device: torch.device

    @property
    def only_scores(self) -> str | None: ...

    @property
    def only_softmax(self) -> str | None: ...

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, C) of normalised images (B, 3, S, S)."""

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, S, S): what the last layer classifies."""


class ModelScorer:
    """A model of PyTorch, as :func:`~patchmerger.models.find_model` knows them.

    A model in memory is moved to ``device``; by default it stays where it is, and a saved one goes to the accelerator
    where there is one. ``preprocessing`` and ``class_names`` stand in for what is known of the model.

    Raises:
        ValueError: No such model; one whose preprocessing is not known, that takes no RGB images, or has another number
            of classes than ``class_names``.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.only_scores: str | None = None
        self.only_softmax: str | None = None
        place = None if isinstance(model, nn.Module) and device is None else find_device(device)
        found = find_classifier(model, preprocessing=preprocessing, features=True)
        self.name, self.net = found.name, found.classifier
        self.preprocessing, self.image_size = found.preprocessing, found.image_size
        self.class_names, self.remark = names_of(
            class_names, found.class_names, self.net.num_outputs if _has_classes(self.net) else 0, found.name
        )
        self.multi_label = found.multi_label
        if place is not None:
            self.net.to(place)
        self._like = next(self.net.parameters())
        self.device = self._like.device

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, C) of normalised images (B, 3, S, S)."""
        with torch.inference_mode(), eval_mode(self.net):
            scores: Tensor = self.net(images.to(self._like))  # (B, C)
            return scores.float()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, 3, S, S): what the last layer classifies."""
        with torch.inference_mode(), eval_mode(self.net):
            return self.net.with_features(images.to(self._like))[1].float()


def names_of(
    given: Sequence[str] | None, known: Sequence[str] | None, classes: int, model: str
) -> tuple[tuple[str, ...], str | None]:
    """One name a class, and what to say of names that neither the user gives nor the model knows.

    There are 0 classes in a model without a head.

    Raises:
        ValueError: Another number of names than of classes, or one text.
    """
    if given is not None:
        if isinstance(given, str):
            raise ValueError(f"class_names ({given!r}) must be a sequence of names, one a class")
        if not classes:
            raise ValueError(f"class_names ({len(given)} names) means nothing to {model}, which has no classes")
        if len(given) != classes:
            raise ValueError(
                f"class_names ({len(given)} names) must be one for each of the {classes} classes of {model}"
            )
        return tuple(given), None
    if not classes:
        return (), None
    if known is not None and len(known) == classes:
        return tuple(known), None
    if classes == _IMAGENET_CLASSES:
        return imagenet_class_names(), "the model names no classes; as it has 1,000, these are ImageNet's"
    return tuple(map(str, range(classes))), "the model names no classes; these are their numbers"


def _has_classes(net: Classifier) -> bool:
    """Whether the outputs are scores of classes, and not features for want of a head."""
    return net.head is not None and getattr(net.net, "num_classes", 1) != 0


def imagenet_class_names() -> tuple[str, ...]:
    """One short name for each of ImageNet's 1,000 classes, all different, in the order that all libraries use.

    A name is the first of the WordNet synset ("tench" of "tench, Tinca tinca"); where two are alike all of its words
    are taken, and where these are alike too the number of the synset follows ("crane (n02012849)").
    """
    info = ImageNetInfo("imagenet-1k")
    whole, synsets = info.label_descriptions(), info.label_names()
    first = [name.split(",")[0] for name in whole]
    short = [words if twice else name for name, words, twice in zip(first, whole, _twice(first), strict=True)]
    return tuple(
        f"{name} ({synset})" if twice else name
        for name, synset, twice in zip(short, synsets, _twice(short), strict=True)
    )


def _twice(names: list[str]) -> list[bool]:
    """Of each name, whether another one is the same."""
    counts = Counter(names)
    return [counts[name] > 1 for name in names]
