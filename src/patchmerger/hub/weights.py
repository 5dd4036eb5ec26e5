"""Weights on disk, never a pickle, and that a config asks for no more than they hold before memory is taken for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from patchmerger.hub.folders import INDEX_NAME, PICKLES, WEIGHTS_NAME, how_to_convert
from patchmerger.runs.files import read_object
from patchmerger.runs.tensors import read_tensors, write_tensors

Weights = dict[str, Tensor]

# How much more a model may hold than its file: tied weights and what is computed when it is made, such as positions.
_PARAMETERS, _BUFFERS, _ALWAYS = 4, 64, 2**24


def write_weights(model: nn.Module, folder: Path) -> None:
    """Write the state dict of ``model`` to one file."""
    write_tensors(folder / WEIGHTS_NAME, model.state_dict())


def read_weights(folder: Path, conversion: str | None = None) -> Weights:
    """All the weights in a folder, each in the dtype that it was saved in.

    ``conversion`` is how pickled weights are to be converted, for the error that refuses them.

    Raises:
        FileNotFoundError: There are none, or a shard that the index names is missing.
        ValueError: They are pickled, a file is cut short, or a shard does not hold what the index says.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return read_tensors(folder / WEIGHTS_NAME)
    if (folder / INDEX_NAME).is_file():
        return _read_shards(folder)
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        raise ValueError(how_to_convert(folder / pickled[0], conversion))
    raise FileNotFoundError(f"folder ({folder}) has no {WEIGHTS_NAME}")


def weights_file(folder: Path) -> Path:
    """The file to name where the weights are wrong."""
    return folder / (WEIGHTS_NAME if (folder / WEIGHTS_NAME).is_file() else INDEX_NAME)


def _read_shards(folder: Path) -> Weights:
    index = folder / INDEX_NAME
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says what file each weight is in; copy it again")
    weights: Weights = {}
    for name in sorted(set(places.values())):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names {name!r}, which is no safetensors file beside it")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"folder ({folder}) has no {name}, which {INDEX_NAME} names: copy it there")
        shard = read_tensors(folder / name)
        gone = sorted(weight for weight, place in places.items() if place == name and weight not in shard)
        if gone:
            raise ValueError(f"{folder / name} does not hold {gone[0]}, as {INDEX_NAME} says; copy both again")
        weights |= shard
    return weights


def refuse_absurd_depth(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> None:
    """Refuse a config with more layers than there are tensors: making them would take for ever.

    Raises:
        ValueError: It names the setting, its value and the number of tensors.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            refuse_absurd_depth(value, weights, source)
        elif type(value) is int and name.endswith(("depth", "layers")) and value > max(len(weights), 64):
            raise ValueError(f"{source} says {name} {value}, but there are {len(weights)} tensors: copy both again")


@contextmanager
def limited_to(weights: Mapping[str, Tensor], source: Path) -> Iterator[None]:
    """Refuse to make a module within that holds many times more numbers than ``weights``; for the meta device.

    Raises:
        ValueError: It names the tensor and its shape.
    """
    held = sum(tensor.numel() for tensor in weights.values())
    thread, seen = threading.get_ident(), {"parameters": 0, "numbers": 0, "computed": 0}

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        parameter = isinstance(tensor, nn.Parameter)
        seen["parameters"] += parameter
        seen["numbers" if parameter else "computed"] += tensor.numel()
        if (
            seen["numbers"] > _PARAMETERS * held + _ALWAYS
            or seen["computed"] > _BUFFERS * held + _ALWAYS
            or seen["parameters"] > _PARAMETERS * len(weights) + 1000
        ):
            raise ValueError(
                f"{source} describes a model that is much larger than its weights, which are {held:,} numbers: at "
                f"{type(module).__name__}.{name} {tuple(tensor.shape)} it has {seen['numbers'] + seen['computed']:,}"
            )

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
