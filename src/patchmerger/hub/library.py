"""What saving must know of a host library; each has a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from patchmerger.hub.folders import CONVERSION
from patchmerger.hub.saved_mergers import SavedMerger
from patchmerger.hub.weights import Weights

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class SaveOptions:
    """What a user can say beside the model; see :func:`patchmerger.save`."""

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    class_names: Sequence[str] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    image_processor: Any = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std ({tuple(self.std)}) must be above 0 for each channel")
        if self.crop_pct is not None and not self.crop_pct > 0:
            raise ValueError(f"crop_pct ({self.crop_pct}) must be above 0, and is mostly at most 1")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            known = ", ".join(map(repr, INTERPOLATIONS))
            raise ValueError(f"interpolation ({self.interpolation!r}) must be one of {known}")
        names = self.class_names
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise ValueError(f"class_names ({names!r}) must be a sequence of strings")

    def names_of(self, num_classes: int) -> list[str] | None:
        """The class names, one for each of the classes."""
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, but the model has {num_classes} classes")
        return None if self.class_names is None else list(self.class_names)


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for a saved model; ``None`` for what its folder does not say."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class PlainConfig:
    """What the config of a library says of a model, mergers apart."""

    architecture: str
    num_classes: int
    input_size: tuple[int, int, int] | None
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


class Library(ABC):
    """How the models of one library are written, built again and told apart.

    Attributes:
        name: The library's.
        own_settings: Attributes of modules that may differ in a model built again: they change no output.
        conversion: How a folder of its pickled weights becomes one that is loaded.
        advice: What would make a model savable that could not be built again.
    """

    name: str
    own_settings: frozenset[str] = frozenset()
    conversion: str = CONVERSION
    advice: str

    @abstractmethod
    def made(self, model: nn.Module) -> bool:
        """Whether ``model`` is of this library, without importing it for that."""

    @abstractmethod
    def write(self, model: nn.Module, folder: Path, mergers: dict[str, Any] | None, options: SaveOptions) -> None:
        """Write config, weights and preprocessing into ``folder``.

        Args:
            model: The model.
            folder: An empty folder.
            mergers: What goes under our key, if anything.
            options: The user's; those that mean nothing to this library are refused.
        """

    @abstractmethod
    def build(
        self, folder: Path, config: dict[str, Any], mergers: Sequence[SavedMerger], weights: Weights
    ) -> tuple[nn.Module, Weights]:
        """The model that a config describes with its mergers, and ``weights`` under the names that it has for them.

        The weights of the model itself are as they fall.
        """

    @abstractmethod
    def outputs(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and value of what ``model`` makes of a random image, each time the same one, along its way."""

    def run_alike(self, rebuilt: nn.Module, model: nn.Module) -> None:
        """Give ``rebuilt`` the settings of a run that are no part of what is saved and change outputs by rounding."""
        return

    @abstractmethod
    def describe(self, config: dict[str, Any], folder: Path) -> PlainConfig:
        """What a config says, without building the model; ``KeyError`` where it says too little."""


def refuse_options(options: SaveOptions, names: Sequence[str], why: str) -> None:
    """Refuse what a user said that has no meaning for the library of the model."""
    for name in names:
        if getattr(options, name) not in (None, {}):
            raise ValueError(f"{name} ({getattr(options, name)!r}) {why}")
