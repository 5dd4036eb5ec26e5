"""Which library a model in memory, or the config of a saved one, is of, and whether it can be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.state import (
    has_adapters,
    left_by_peft,
    refuse_computed_weights,
    refuse_unsupported_state,
    wrapped_by,
)
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.library import Library
from patchmerger.hub.timm import Timm
from patchmerger.hub.torchvision import Torchvision
from patchmerger.hub.transformers import Transformers
from patchmerger.mechanism.subclassing import host_class

_LIBRARIES: dict[str, Library] = {library.name: library for library in (Timm(), Torchvision(), Transformers())}


def library_of_model(model: nn.Module) -> Library | None:
    """The library that made ``model``; ``None`` for a class of one's own."""
    return next((library for library in _LIBRARIES.values() if library.made(model)), None)


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


def savable_library(model: nn.Module) -> Library:
    """The library that made a model which can be saved.

    Raises:
        ValueError: It only wraps a model, its weights are no plain ones, or elsewhere, or it is of a class of your own.
    """
    if (found := wrapped_by(model)) is not None:
        reason, way_out, _ = found
        raise ValueError(f"model ({host_class(model).__name__}) cannot be saved: {reason}; {way_out}")
    wrapped = left_by_peft(model)
    if wrapped is not None and not has_adapters(model):
        raise ValueError(
            f"model ({host_class(model).__name__}) has {wrapped} in a wrapper that PEFT left there: "
            f"model.set_submodule({wrapped!r}, model.get_submodule({wrapped!r}).modules_to_save['default'])"
        )
    if has_adapters(model):
        raise ValueError(
            f"model ({host_class(model).__name__}) has adapters of PEFT: patchmerger.save(model.merge_and_unload(), "
            "folder) on the PEFT model"
        )
    refuse_computed_weights(model)
    refuse_unsupported_state(model, "saved")
    for name, tensor in model.state_dict().items():
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"model is sharded ({name} is a DTensor): gather its state dict into a plain model first")
    library = library_of_model(model)
    if library is None:
        raise _of_no_library(model)
    return library


def _of_no_library(model: nn.Module) -> ValueError:
    """What is wrong with a class of one's own: what it holds, or another way to save it."""
    try:
        find_host(model)
    except UnsupportedModelError as error:
        if error.inside:
            paths = " or ".join(f"model.{path}" for path in error.inside)
            return ValueError(f"model ({host_class(model).__name__}) is not of {_names()}, but holds one: pass {paths}")
    return ValueError(
        f"model ({host_class(model).__name__}) is not of {_names()}: no config could build a class of your own again; "
        "save its weights with safetensors.torch.save_model(model, path), and to load them make the model, "
        "patchmerger.insert as before, then safetensors.torch.load_model(model, path)"
    )


def _names() -> str:
    *first, last = _LIBRARIES
    return f"{', '.join(first)} or {last}"
