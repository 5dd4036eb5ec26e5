"""Save and load timm models with their mergers: a folder with ``model.safetensors`` and a ``config.json``.

The config is timm's own hub format (architecture, arguments, preprocessing, class names) with the mergers under one
more key, ``"patchmerger"``. Nothing is ever pickled.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from patchmerger.rebuild_check import check_rebuilt, misfit
from patchmerger.saved_config import (
    CONFIG_NAME,
    PICKLES,
    SCHEMA_VERSION,
    WEIGHTS_NAME,
    check_folder,
    describe,
    describe_mergers,
    how_to_convert,
    insert_saved,
    names_in_order,
    read_config,
    saved_mergers,
)

__all__ = ["describe", "load", "save"]

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a timm model, its mergers and its preprocessing, so that :func:`load` gives the same outputs.

    Before the folder appears, the model is built again from what was written and compared with ``model``: its
    parts, their settings and its outputs. Drop rates are settings of a training run and are not saved.

    Args:
        model: A model made by ``timm.create_model``, with or without mergers.
        folder: Where to; made with its parents. It appears whole or not at all.
        mean: Mean of each channel that images are normalised with; by default as ``model.pretrained_cfg`` says.
        std: Standard deviation of each channel; by default as ``model.pretrained_cfg`` says.
        crop_pct: Part of the resized image that the centre crop keeps; by default likewise.
        interpolation: How images are resized (``"bicubic"``, say); by default likewise.
        class_names: One name a class, in the order of the outputs; by default those that ``model`` was loaded with.
        model_args: Arguments of ``timm.create_model`` that timm has no record of, because the model was changed
            by hand after it was made (``{"depth": 6}`` where blocks were taken away, say).
        overwrite: Replace a model that was saved in ``folder``. The old one stays until the new one is whole.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: ``folder`` has something in it and ``overwrite`` is false, or it holds other things than
            a saved model.
        ValueError: The model cannot be built again from its configuration, has a reducer that is not of this
            library, is wrapped or sharded, or an option does not fit; nothing was written.
    """
    _refuse_unsavable(model)
    folder = Path(folder)
    target = folder.expanduser().resolve()
    _check_target(target, overwrite)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    ours = {"schema_version": SCHEMA_VERSION, "mergers": [asdict(m) for m in describe_mergers(model)]}
    names = _class_names(model, class_names)
    _check_preprocessing(std, crop_pct, interpolation)

    whole = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    whole.mkdir(parents=True)
    try:
        save_config_for_hf(
            model,
            str(whole / CONFIG_NAME),
            model_config={"label_names": names, "patchmerger": ours},
            model_args=dict(model_args or {}),
            data_config={"mean": mean, "std": std, "crop_pct": crop_pct, "interpolation": interpolation},
        )
        check_rebuilt(model, _build(whole))
        save_file(weights, whole / WEIGHTS_NAME, metadata={"format": "pt"})
        _put_in_place(whole, target)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    return folder


def load(folder: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> nn.Module:
    """Load a model that :func:`save` wrote, or a plain one in timm's hub format.

    Args:
        folder: A folder with ``config.json`` and ``model.safetensors``.
        device: Where the model goes.

    Returns:
        The model in eval mode, each weight in the dtype that it was saved in. Its preprocessing is its
        ``pretrained_cfg``, so ``timm.data.resolve_model_data_config(model)`` knows it.

    Raises:
        FileNotFoundError: The folder or a file in it is missing.
        ValueError: A file is broken, of another model, pickled or written by a newer version; an architecture
            that timm does not know.
    """
    folder = check_folder(folder)
    weights_path = folder / WEIGHTS_NAME
    if not weights_path.is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickled:
            raise ValueError(how_to_convert(folder / pickled[0]))
        raise FileNotFoundError(f"folder ({folder}) has no {WEIGHTS_NAME}")
    model = _build(folder)
    try:
        weights = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is cut short or not a safetensors file ({error}); copy it again") from error
    difference = misfit(model, weights)
    if difference:
        raise ValueError(f"{weights_path} is of another model than its {CONFIG_NAME}: {difference}")
    # Assigned, not copied: a copy would turn bfloat16 weights into float32.
    model.load_state_dict(weights, assign=True)
    return model.eval().to(device)


def _build(folder: Path) -> nn.Module:
    """The model that a config describes, with weights as they fall; random numbers elsewhere stay as they are."""
    config = read_config(folder)
    saved = saved_mergers(config, folder)
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise ValueError(
            f"{folder / CONFIG_NAME} names the architecture {architecture!r}, which timm {timm.__version__} does not "
            "know: upgrade timm, or import the module that registers it"
        )
    with torch.random.fork_rng(devices=[]):
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=False)
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ValueError(
                f"timm {timm.__version__} cannot make {architecture!r} with the model_args in "
                f"{folder / CONFIG_NAME}: {error}"
            ) from error
        for merger in saved:
            insert_saved(model, merger)
    return model


def _refuse_unsavable(model: nn.Module) -> None:
    """Refuse what only wraps a model, and a model without weights or a name."""
    if isinstance(model, OptimizedModule):
        raise ValueError("model is compiled: save model._orig_mod")
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise ValueError(f"model is wrapped by {type(model).__name__}: save model.module")
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture")
    if not architecture or not timm.is_model(architecture):
        raise ValueError(
            f"model ({type(model).__name__}) has no architecture that timm knows ({architecture!r}): it could not be "
            "built again; make it with timm.create_model"
        )
    if not hasattr(model, "num_classes"):
        raise ValueError(f"model ({type(model).__name__}) only wraps a model for its features: save its .model")
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(f"model holds no weights: {name} is on the meta device")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"model is sharded ({name} is a DTensor): gather its state dict into a plain model first")


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace anything but a saved model, and that only when asked."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"folder ({target}) is a file")
    held = {path.name for path in target.iterdir()}
    if held and not overwrite:
        raise FileExistsError(
            f"folder ({target}) is not empty: choose another, or replace the model with overwrite=True"
        )
    others = sorted(held - {CONFIG_NAME, WEIGHTS_NAME})
    if others:
        raise FileExistsError(
            f"folder ({target}) holds more than a saved model ({', '.join(others[:3])}), which overwrite=True would "
            "delete: choose another"
        )


def _put_in_place(whole: Path, target: Path) -> None:
    """Rename, so that nobody ever sees half a model."""
    if not target.exists():
        whole.rename(target)
        return
    old = whole.with_suffix(".old")
    target.rename(old)
    try:
        whole.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _class_names(model: nn.Module, names: Sequence[str] | None) -> list[str] | None:
    """The names to write: those given, else those that the model was loaded with."""
    num_classes = int(cast(Any, model).num_classes)
    if names is None:
        known = names_in_order(cast(Any, model).pretrained_cfg.get("label_names"))
        return list(known) if known and len(known) == num_classes else None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names ({names!r}) must be a sequence of strings")
    if len(names) != num_classes:
        raise ValueError(f"class_names has {len(names)} names, but the model has {num_classes} classes")
    return list(names)


def _check_preprocessing(std: Sequence[float] | None, crop_pct: float | None, interpolation: str | None) -> None:
    if std is not None and not all(value > 0 for value in std):
        raise ValueError(f"std ({tuple(std)}) must be above 0 for each channel")
    if crop_pct is not None and not crop_pct > 0:
        raise ValueError(f"crop_pct ({crop_pct}) must be above 0, and is mostly at most 1")
    if interpolation is not None and interpolation not in _INTERPOLATIONS:
        raise ValueError(f"interpolation ({interpolation!r}) must be one of {', '.join(map(repr, _INTERPOLATIONS))}")
