"""What saving must know of a library of models; each library has a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.saved_changes import SavedChanges, make_changes
from patchmerger.hub.weights import Weights


@dataclass(frozen=True)
class SaveOptions:
    """What a user can say beside the model; see :func:`patchmerger.save`."""

    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    image_processor: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.preprocessing, Preprocessing | None):
            raise TypeError(f"preprocessing ({self.preprocessing!r}) must be patchmerger.data.Preprocessing(mean, std)")
        if self.preprocessing is not None and self.image_processor is not None:
            raise ValueError("preprocessing and image_processor are both given: give one of them")
        names = self.class_names
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) for name in names)):
            raise ValueError(f"class_names ({names!r}) must be a sequence of strings")

    def names_of(self, num_classes: int) -> list[str] | None:
        """The class names, one for each of the classes."""
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(f"class_names has {len(self.class_names)} names, but the model has {num_classes} classes")
        return None if self.class_names is None else list(self.class_names)

    def check_channels(self, channels: int) -> None:
        """Refuse a mean for another number of channels."""
        if self.preprocessing is not None and len(self.preprocessing.mean) != channels:
            raise ValueError(
                f"preprocessing has a mean of {len(self.preprocessing.mean)} values ({self.preprocessing.mean}), but "
                f"the model takes images of {channels} channels"
            )

    def refuse(self, name: str, why: str) -> None:
        """Refuse an option that has no meaning for the library of the model."""
        if getattr(self, name) not in (None, {}):
            raise ValueError(f"{name} ({getattr(self, name)!r}) {why}")


@dataclass(frozen=True)
class PlainConfig:
    """What the config of a library says of a model, mergers apart; see :class:`~patchmerger.hub.SavedConfig`."""

    architecture: str
    num_classes: int
    input_size: tuple[int, int, int] | None
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...] | None


def preprocessing_in(settings: Mapping[str, Any]) -> Preprocessing:
    """What a config in timm's form says of the images."""
    return Preprocessing(
        settings["mean"],
        settings["std"],
        settings["crop_pct"],
        settings["interpolation"],
        settings.get("crop_mode") or "center",
    )


def names_in_order(names: Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...] | None:
    """In order of the classes; timm also takes a dict of class number → name, whose keys are strings in JSON."""
    if isinstance(names, Mapping):
        names = [names.get(str(i), str(i)) for i in range(1 + max(map(int, names)))] if names else None
    return tuple(names) if names else None


class Library(ABC):
    """How the models of one library are written, built again and told apart.

    Attributes:
        name: The library's.
        own_settings: Attributes of modules that may differ in a model built again: they change no output.
        conversion: How its pickled weights become a folder that is loaded, where not by ``patchmerger convert``.
        advice: What would make a model savable that could not be built again.
        buffers_follow_weights: Whether buffers that no file holds get the number format of the weights, as they have
            after ``model.to``; where not, they are as the library makes them.
    """

    name: str
    own_settings: frozenset[str] = frozenset()
    conversion: str | None = None
    advice: str
    buffers_follow_weights: bool = True

    @abstractmethod
    def made(self, model: nn.Module) -> bool:
        """Whether ``model`` is of this library, without importing it for that."""

    @abstractmethod
    def write(self, model: nn.Module, folder: Path, mergers: dict[str, Any] | None, options: SaveOptions) -> None:
        """Write config, weights and preprocessing into an empty folder, and ``mergers``, if any, under our key.

        Options that mean nothing to this library are refused.
        """

    @abstractmethod
    def make(self, folder: Path, config: dict[str, Any]) -> nn.Module:
        """The model that a config describes, without mergers; its weights are as they fall."""

    def build(
        self, folder: Path, config: dict[str, Any], changes: SavedChanges, weights: Weights
    ) -> tuple[nn.Module, Weights]:
        """The model that a config describes with its mergers, and ``weights`` under the names that it has for them.

        The weights of the model itself are as they fall.
        """
        model = self.make(folder, config)
        make_changes(model, changes, weights)
        return model, weights

    @abstractmethod
    def outputs(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Name and value of what ``model`` makes of a random image, each time the same one, along its way."""

    def run_alike(self, rebuilt: nn.Module, model: nn.Module) -> None:
        """Give ``rebuilt`` the settings of a run that are no part of what is saved and change outputs by rounding."""
        return

    def describe(self, config: dict[str, Any], folder: Path) -> PlainConfig:
        """What a config says, without building the model; ``KeyError`` where it says too little.

        This is timm's newer format, with ``pretrained_cfg``, or the older flat one.
        """
        settings = config.get("pretrained_cfg", config)
        return PlainConfig(
            architecture=config["architecture"],
            num_classes=config.get("num_classes", settings.get("num_classes", 0)),
            input_size=cast(tuple[int, int, int], tuple(settings["input_size"])),
            preprocessing=preprocessing_in(settings),
            class_names=names_in_order(config.get("label_names", settings.get("label_names"))),
        )

    def preprocessing_of(self, model: nn.Module) -> Preprocessing | None:
        """How images are prepared for a model in memory, where that is known."""
        return None

    def class_names_of(self, model: nn.Module) -> tuple[str, ...] | None:
        """One name a class of a model in memory, where they are known."""
        return None
