"""Save and load timm models with their mergers: a folder with ``model.safetensors`` and a ``config.json``.

The config is timm's own hub format (architecture, arguments, preprocessing, class names) with the mergers under one
more key, ``"patchmerger"``. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from timm.models import get_model_input_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from patchmerger.insertion import InsertedMerger, Prefix, insert, mergers
from patchmerger.merger import Norm, PatchMerger
from patchmerger.merging_block import is_merging
from patchmerger.reducers import AveragePool

SCHEMA_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
_DROPS = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
_PLAIN = (bool, int, float, str, tuple)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# Settings of a run or of a start, which do not change what the trained model computes.
_RUN_TIME = {"training", "grad_checkpointing", "distilled_training", "fused_attn", "init_values", "weight_init_mode"}


@dataclass(frozen=True)
class SavedMerger:
    """A merger as the config keeps it.

    Attributes:
        after: The block that it stands after, counted from 1.
        num_tokens: Tokens it gives, M.
        prefix: Whether prefix tokens pass by (``"keep"``) or are merged too (``"merge"``).
        reducer: ``"PatchMerger"`` or ``"AveragePool"``.
        norm: Of a PatchMerger; else ``None``.
        scale: Of a PatchMerger; else ``None``.
        eps: Of the norm of a PatchMerger; ``None`` where it has none.
    """

    after: int
    num_tokens: int
    prefix: Prefix
    reducer: Literal["PatchMerger", "AveragePool"]
    norm: Norm | None = None
    scale: float | None = None
    eps: float | None = None


@dataclass(frozen=True)
class SavedConfig:
    """What a saved model is and how its images are prepared.

    Attributes:
        architecture: timm's name of the model.
        num_classes: Outputs of the head; 0 where there is none.
        input_size: (channels, height, width) of an image.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        crop_pct: Part of the resized image that the centre crop keeps.
        crop_mode: How the crop is taken, in timm's words.
        interpolation: How images are resized, in timm's words.
        class_names: One name a class, or ``None``.
        mergers: First to last.
    """

    architecture: str
    num_classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str
    interpolation: str
    class_names: tuple[str, ...] | None
    mergers: tuple[SavedMerger, ...]


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
    ours = {"schema_version": SCHEMA_VERSION, "mergers": [asdict(m) for m in _describe_mergers(model)]}
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
        _check_rebuilt(model, _build(whole))
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
    folder = _check_folder(folder)
    weights_path = folder / WEIGHTS_NAME
    if not weights_path.is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickled:
            raise ValueError(_how_to_convert(folder / pickled[0]))
        raise FileNotFoundError(f"folder ({folder}) has no {WEIGHTS_NAME}")
    model = _build(folder)
    try:
        weights = load_file(weights_path)
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is cut short or not a safetensors file ({error}); copy it again") from error
    misfit = _misfit(model, weights)
    if misfit:
        raise ValueError(f"{weights_path} is of another model than its {CONFIG_NAME}: {misfit}")
    # Assigned, not copied: a copy would turn bfloat16 weights into float32.
    model.load_state_dict(weights, assign=True)
    return model.eval().to(device)


def describe(folder: str | os.PathLike[str]) -> SavedConfig:
    """Read what a saved model is, without building it.

    Args:
        folder: A folder that :func:`save` wrote, or a plain model's in timm's hub format.

    Raises:
        FileNotFoundError: The folder or its ``config.json`` is missing.
        ValueError: The config is broken or written by a newer version.
    """
    folder = _check_folder(folder)
    config = _read_config(folder)
    settings = config.get("pretrained_cfg", config)
    try:
        return SavedConfig(
            architecture=config["architecture"],
            num_classes=config.get("num_classes", settings.get("num_classes", 0)),
            input_size=cast(tuple[int, int, int], tuple(settings["input_size"])),
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            crop_pct=settings["crop_pct"],
            crop_mode=settings.get("crop_mode", "center"),
            interpolation=settings["interpolation"],
            class_names=_names_in_order(config.get("label_names", settings.get("label_names"))),
            mergers=_saved_mergers(config, folder),
        )
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG_NAME} does not say {error}") from error


def _names_in_order(names: Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...] | None:
    """In order of the classes; timm also takes a dict of class number → name, whose keys are strings in JSON."""
    if isinstance(names, Mapping):
        names = [names.get(str(i), str(i)) for i in range(1 + max(map(int, names)))] if names else None
    return tuple(names) if names else None


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


def _describe_mergers(model: nn.Module) -> list[SavedMerger]:
    # Any timm model can be saved, also one that could not hold a merger.
    if not any(is_merging(module) for module in model.modules()):
        return []
    return [_describe_merger(merger, int(cast(Any, model).num_prefix_tokens)) for merger in mergers(model)]


def _describe_merger(merger: InsertedMerger, num_prefix_tokens: int) -> SavedMerger:
    prefix: Prefix = "keep" if merger.num_passing_tokens == num_prefix_tokens else "merge"
    module, place = merger.module, (merger.after, merger.num_tokens, prefix)
    if type(module) is AveragePool:
        return SavedMerger(*place, reducer="AveragePool")
    if type(module) is not PatchMerger:
        raise ValueError(
            f"{merger.name} is a {type(module).__name__}: only PatchMerger and AveragePool can be saved, for no other "
            "reducer could be built again"
        )
    eps = None if module.norm is None else module.norm.eps
    return SavedMerger(*place, reducer="PatchMerger", norm=module.norm_mode, scale=module.scale, eps=eps)


def _class_names(model: nn.Module, names: Sequence[str] | None) -> list[str] | None:
    """The names to write: those given, else those that the model was loaded with."""
    num_classes = int(cast(Any, model).num_classes)
    if names is None:
        known = _names_in_order(cast(Any, model).pretrained_cfg.get("label_names"))
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


def _check_folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.suffix in _PICKLES:
        raise ValueError(_how_to_convert(path))
    if path.is_file():
        raise ValueError(f"folder ({path}) is a file: give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    if re.fullmatch(r"(hf[-_]hub:)?[\w.-]+/[\w.-]+(@[\w.-]+)?", str(folder)):
        raise FileNotFoundError(
            f"folder ({folder}) does not exist; if it is a name on the Hugging Face hub, download it first "
            "(huggingface_hub.snapshot_download) and give that folder"
        )
    raise FileNotFoundError(f"folder ({folder}) does not exist")


def _how_to_convert(path: Path) -> str:
    return (
        f"{path} is a pickle, which can run any code when it is read, so it is not loaded; convert it once: make the "
        "model with timm.create_model and insert, then model.load_state_dict(torch.load(path, weights_only=True)) "
        "and patchmerger.save(model, folder)"
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"folder ({folder}) has no {CONFIG_NAME}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise ValueError(f"{path} names no architecture: it is not in timm's hub format")
    return config


def _saved_mergers(config: dict[str, Any], folder: Path) -> tuple[SavedMerger, ...]:
    """The mergers in a config; a config without our key is a plain timm model's."""
    path = folder / CONFIG_NAME
    ours = config.get("patchmerger", {"schema_version": SCHEMA_VERSION, "mergers": []})
    version = ours.get("schema_version") if isinstance(ours, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has no valid schema_version under 'patchmerger' ({version!r})")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, but this patchmerger knows up to {SCHEMA_VERSION}: upgrade it"
        )
    try:
        return tuple(SavedMerger(**merger) for merger in ours["mergers"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} describes its mergers in a way that is not understood: {error}") from error


def _build(folder: Path) -> nn.Module:
    """The model that a config describes, with weights as they fall; random numbers elsewhere stay as they are."""
    config = _read_config(folder)
    saved = _saved_mergers(config, folder)
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
            _insert(model, merger)
    return model


def _insert(model: nn.Module, saved: SavedMerger) -> None:
    if saved.reducer == "AveragePool":
        insert(model, saved.num_tokens, saved.after, prefix=saved.prefix, reducer=AveragePool(saved.num_tokens))
        return
    if saved.reducer != "PatchMerger" or saved.norm is None or saved.scale is None:
        raise ValueError(f"the merger after block {saved.after} is not understood: {saved}")
    insert(model, saved.num_tokens, saved.after, prefix=saved.prefix, norm=saved.norm, scale=saved.scale)
    module = next(cast(PatchMerger, m.module) for m in mergers(model) if m.after == saved.after)
    if module.norm is not None and saved.eps is not None:
        module.norm.eps = saved.eps


def _misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """In what ``weights`` are not the model's: names or shapes; ``None`` where they fit."""
    wanted = model.state_dict()
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    for what, found in (
        ("missing weights", sorted(wanted.keys() - weights.keys())),
        ("unexpected weights", sorted(weights.keys() - wanted.keys())),
        ("other shapes", shapes),
    ):
        if found:
            return f"{what}: {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return None


def _check_rebuilt(model: nn.Module, rebuilt: nn.Module) -> None:
    """Refuse a model whose weights, settings or outputs are not those of what was built from its config.

    Heads, activations and the like leave no trace in the weights, and a fresh network can hide them from its outputs
    too (a head of zeros, a small LayerScale), so the settings of all parts are compared as well.
    """
    weights = model.state_dict()
    difference = _misfit(rebuilt, weights) or _other_setting(model, rebuilt)
    if difference is None:
        rebuilt.load_state_dict(weights, assign=True)  # the very tensors of the model: no memory, no rounding
        difference = _other_output(model, rebuilt)
    if difference:
        raise ValueError(
            "model cannot be built again from the arguments that timm recorded when it was made: built again it has "
            f"{difference}; say in model_args what was changed since, such as model_args={{'depth': 6}}"
        )


def _other_setting(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first part of another class or with another setting than in ``model``, drop rates apart."""
    parts = dict(model.named_modules())
    for name, part in rebuilt.named_modules():
        original = parts.get(name)
        if original is None or (isinstance(part, _DROPS) and isinstance(original, _DROPS)):
            continue
        if type(part) is not type(original):
            return f"a {type(part).__name__} as {name or 'model'}, not a {type(original).__name__}"
        for key, value in vars(part).items():
            if key.startswith("_") or "drop" in key or key in _RUN_TIME or key not in vars(original):
                continue
            expected = vars(original)[key]
            if isinstance(value, _PLAIN) and isinstance(expected, _PLAIN) and value != expected:
                return f"{name}.{key} = {value!r}, not {expected!r}".removeprefix(".")
    return None


@torch.no_grad()
def _other_output(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """How the outputs for a random image differ, if they do."""
    like = next(tensor for tensor in model.parameters() if tensor.is_floating_point())
    image = torch.randn(1, *get_model_input_config(model)["input_size"], generator=torch.Generator().manual_seed(0))
    image = image.to(like)
    rebuilt.to(like.device).eval()
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for stage in ("forward_features", "forward"):
            # Both by name: __call__ would run user's hooks and compile a compiled model for this one image.
            expected, given = (getattr(m, stage)(image) for m in (model, rebuilt))
            if not (isinstance(expected, Tensor) and expected.shape == given.shape):
                return f"another kind of {stage} output"
            if not bool(expected.isfinite().all()):
                raise ValueError(f"{stage} of model gives values that are not finite: such a model is not saved")
            error = (expected - given).abs().max()
            if not error <= 10 * torch.finfo(expected.dtype).eps * expected.abs().max():
                return f"other outputs ({stage} differs by {error:.2g})"
    finally:
        for module, training in modes:
            module.training = training
    return None
