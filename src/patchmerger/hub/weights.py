"""Weights on disk: one safetensors file, or several with an index; never a pickle."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from patchmerger.hub.folders import INDEX_NAME, PICKLES, WEIGHTS_NAME, how_to_convert
from patchmerger.runs.files import read_object
from patchmerger.runs.tensors import read_tensors, write_tensors

Weights = dict[str, Tensor]


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
