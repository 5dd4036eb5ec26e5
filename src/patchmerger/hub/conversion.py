"""Turn a checkpoint of PyTorch into a folder that ``load`` reads: the one place where a pickle is opened."""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.checkpoints import build_from_weights
from patchmerger.hub.folders import check_target
from patchmerger.hub.saving import save
from patchmerger.hub.timm import check_model_name
from patchmerger.hub.weights import Weights
from patchmerger.runs.tensors import read_tensors

_SCALAR: Any = import_module("numpy._core.multiarray").scalar
# Plain values that training scripts put beside the weights: settings, the best accuracy, paths.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    collections.defaultdict,
    list,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]


def convert(
    checkpoint: str | Path,
    out: str | Path | None = None,
    *,
    architecture: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert the weights of a timm model, saved by PyTorch or as safetensors, to a folder that ``load`` reads.

    A pickle can run any code when it is read. Here it is read by ``torch.load(weights_only=True)`` alone, which makes
    tensors and plain values and nothing else; the one further class that it may make is ``argparse.Namespace``, a
    container of options that timm's train.py puts beside the weights.

    Args:
        checkpoint: The file: .pth, .pt, .pth.tar, .bin, .ckpt, .safetensors.
        out: The folder to make; the path of the file without its ending by default.
        architecture: timm's name of the model; by default the one that the file names, as those of timm's train.py do.
        model_args: Further arguments of ``timm.create_model``; number of classes and image size are read off the
            weights.
        key: Which weights, where the file holds several, such as "model" and "model_ema".
        preprocessing: How images are prepared for the model; by default as timm says of the architecture.
        class_names: One name a class.
        overwrite: Replace a model that was saved in ``out``.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds more than weights, or those of another model; the message says what would do.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint ({path}) does not exist")
    out = path.with_name(path.name.split(".")[0]) if out is None else out
    check_target(Path(out).expanduser().resolve(), overwrite=overwrite)
    content = read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    weights = _choose(content, key, path)
    name = architecture or content.get("arch")
    if not isinstance(name, str):
        raise ValueError(f"architecture must be given: {path} does not name it; vit_small_patch16_224, say")
    check_model_name(name)
    made_with = getattr(content.get("args"), "model_kwargs", None)
    args = (made_with if isinstance(made_with, dict) else {}) | dict(model_args or {})
    model = build_from_weights(weights, name, args, path)
    return save(model, out, preprocessing=preprocessing, class_names=class_names, overwrite=overwrite)


def read_pickle(path: Path) -> Any:
    """Tensors and plain values; ``ValueError`` where the file has anything else, which is not made."""
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what is not understood is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        beside = _other_classes(path)
        if not beside:
            raise ValueError(f"{path} is damaged, or no checkpoint of PyTorch") from error
        raise ValueError(
            f"{path} holds {', '.join(beside[:3])}, which could run code and is not read: whoever made it can save the "
            "weights alone, torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise ValueError(f"{path} is a TorchScript archive: save the state dict of its model") from error
        raise ValueError(f"{path} is damaged, or no checkpoint of PyTorch") from error


def _other_classes(path: Path) -> list[str]:
    """What is in the file beside weights, found without making it."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (ValueError, RuntimeError, pickle.UnpicklingError, EOFError):
        return []
    known = [
        entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}" for entry in _HARMLESS
    ]
    return sorted(name for name in found if name not in known)


def _choose(content: Any, key: str | None, path: Path) -> Weights:
    """The weights in a checkpoint."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    found = {str(name): part for name, part in content.items() if _is_state_dict(part)}
    if key is not None:
        if key not in found:
            raise ValueError(f"key ({key!r}) is none of the weights in {path}: {', '.join(found) or 'one set'}")
        return _tensors(found[key])
    if _is_state_dict(content):
        return _tensors(content)
    if len(found) > 1:
        raise ValueError(f"{path} holds several weights: name one by key, {' or '.join(found)}")
    if not found:
        held = ", ".join(list(map(str, content))[:5])
        raise ValueError(f"{path} holds no state dict (it holds {held or 'nothing'}): name the file of the weights")
    ((name, weights),) = found.items()
    warnings.warn(f"{path}: took the weights under {name!r}", stacklevel=3)
    return _tensors(weights)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, Tensor) for v in value.values())


def _tensors(weights: Mapping[Any, Tensor]) -> Weights:
    return {str(name): tensor.detach() for name, tensor in weights.items()}
