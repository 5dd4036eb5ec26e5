"""What comes out for each image: its classes or its features, or why it could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor


@dataclass(frozen=True)
class PredictedClass:
    """A class that an image may have.

    Attributes:
        name: Its name; its number as a text where the model knows no names.
        index: Its number, from 0.
        probability: From 0 to 1.
    """

    name: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image.

    Attributes:
        image: Its path, or its place among those that were given: "image 0".
        classes: The likeliest classes, best first; none where features were asked for.
        features: Its features, float32 (D,); ``None`` where classes were asked for.
    """

    image: str
    classes: tuple[PredictedClass, ...] = ()
    features: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read and was passed over.

    Attributes:
        image: As in :class:`Prediction`.
        reason: What the decoder says.
    """

    image: str
    reason: str

    def __str__(self) -> str:
        return f"{self.image}: {self.reason}"


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """One prediction for each image that could be read, in order.

    Attributes:
        predictions: The predictions.
        bad: The images that could not be read.
        class_names: One name a class of the model; none where features were asked for.
    """

    predictions: tuple[Prediction, ...]
    bad: tuple[BadImage, ...] = ()
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, outcomes: Iterable[Prediction | BadImage], class_names: tuple[str, ...]) -> Predictions:
        """Those of images that could be read, and the others."""
        found: list[Prediction] = []
        bad: list[BadImage] = []
        for outcome in outcomes:
            if isinstance(outcome, Prediction):
                found.append(outcome)
            else:
                bad.append(outcome)
        return cls(tuple(found), tuple(bad), class_names)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...

    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    @property
    def features(self) -> Tensor:
        """The features of all images, float32 (n, D).

        Raises:
            ValueError: Classes were asked for, or no image could be read.
        """
        found = [prediction.features for prediction in self.predictions if prediction.features is not None]
        if not found:
            raise ValueError("there are no features: ask for them with features=True, for at least one image")
        return torch.stack(found)
