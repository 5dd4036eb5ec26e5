"""Which library a model in memory, or the config of a saved one, is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.hosts.registry import supported_inside
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.library import Library
from patchmerger.hub.timm import Timm
from patchmerger.hub.torchvision import Torchvision
from patchmerger.hub.transformers import Transformers
from patchmerger.mechanism.subclassing import host_class

_LIBRARIES: dict[str, Library] = {library.name: library for library in (Timm(), Torchvision(), Transformers())}


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
        raise ValueError(f"model ({host_class(model).__name__}) is not of {_names()}, but holds one: pass {paths}")
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
