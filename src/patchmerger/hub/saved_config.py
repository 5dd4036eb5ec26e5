"""What a saved model is, read from its folder without building it; and which library a model or a config is of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts.registry import supported_inside
from patchmerger.hub.folders import CONFIG_NAME, find_folder, read_object
from patchmerger.hub.library import Library
from patchmerger.hub.saved_mergers import SavedMerger, read_mergers
from patchmerger.hub.timm import Timm
from patchmerger.hub.torchvision import Torchvision
from patchmerger.hub.transformers import Transformers
from patchmerger.mechanism.subclassing import host_class

_LIBRARIES: dict[str, Library] = {library.name: library for library in (Timm(), Torchvision(), Transformers())}


@dataclass(frozen=True)
class SavedConfig:
    """What a saved model is and how its images are prepared.

    Attributes:
        library: ``"timm"``, ``"transformers"`` or ``"torchvision"``.
        architecture: timm's name of the model, or the name of its class.
        num_classes: Outputs of the head; 0 where there is none.
        input_size: (channels, height, width) of an image; ``None`` where there is no one size.
        preprocessing: How images are prepared; ``None`` where the folder does not say (of transformers: without an
            image processor).
        class_names: One name a class, or ``None``.
        mergers: First to last.
    """

    library: str
    architecture: str
    num_classes: int
    input_size: tuple[int, int, int] | None
    preprocessing: Preprocessing | None
    class_names: tuple[str, ...] | None
    mergers: tuple[SavedMerger, ...]


def describe(folder: str | os.PathLike[str], *, revision: str | None = None) -> SavedConfig:
    """Read what a saved model is, without building it.

    Args:
        folder: A folder that :func:`patchmerger.save` wrote or that of a run, a plain model's of timm or
            transformers, or a name on the Hugging Face Hub.
        revision: Branch, tag or commit of a name on the Hub.

    Raises:
        FileNotFoundError: The folder or its ``config.json`` is missing.
        ValueError: The config is broken or written by a newer version.
    """
    path = find_folder(folder, revision, weights=False)
    config = read_object(path / CONFIG_NAME)
    library = library_of_config(config, path)
    try:
        plain = library.describe(config, path)
    except KeyError as error:
        raise ValueError(f"{path / CONFIG_NAME} does not say {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path / CONFIG_NAME} says something in a form that is not understood: {error}") from error
    return SavedConfig(
        library=library.name,
        architecture=plain.architecture,
        num_classes=plain.num_classes,
        input_size=plain.input_size,
        preprocessing=plain.preprocessing,
        class_names=plain.class_names,
        mergers=read_mergers(config, path),
    )


def library_of_model(model: nn.Module) -> Library:
    """The library that made ``model``.

    Raises:
        ValueError: It is of a class of the user's own.
    """
    for library in _LIBRARIES.values():
        if library.made(model):
            return library
    inside = supported_inside(model)
    if inside:
        paths = " or ".join(f"model.{path}" for path in inside)
        raise ValueError(f"model ({host_class(model).__name__}) is not of {_names()}, but holds one: save {paths}")
    raise ValueError(
        f"model ({host_class(model).__name__}) is not of {_names()}: no config could build a class of your own again; "
        "save its weights with safetensors.torch.save_model(model, path), and to load them make the model, "
        "patchmerger.insert as before, then safetensors.torch.load_model(model, path)"
    )


def library_of_config(config: dict[str, Any], folder: Path) -> Library:
    """The library that a config is for.

    Raises:
        ValueError: It names none, or one that is not known.
    """
    named = config.get("library")
    if named is None and "model_type" in config:  # before timm: transformers wraps models of timm, and names both
        named = "transformers"
    if named is None and isinstance(config.get("architecture"), str):
        named = "timm"
    if named is None:
        raise ValueError(
            f"{folder / CONFIG_NAME} names no architecture: it is not in the form of timm's hub, of transformers or "
            "of patchmerger"
        )
    if named not in _LIBRARIES:
        raise ValueError(
            f"{folder / CONFIG_NAME} is for a model of the library {named!r}; known are {_names()}: upgrade patchmerger"
        )
    return _LIBRARIES[named]


def _names() -> str:
    *first, last = _LIBRARIES
    return f"{', '.join(first)} or {last}"
