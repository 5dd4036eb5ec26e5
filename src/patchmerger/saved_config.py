"""What a saved model's ``config.json`` says: timm's hub format, with our mergers under one more key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from patchmerger.insertion import InsertedMerger, Prefix, insert, mergers
from patchmerger.merger import Norm, PatchMerger
from patchmerger.merging_block import is_merging
from patchmerger.reducers import AveragePool

SCHEMA_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")


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


def describe(folder: str | os.PathLike[str]) -> SavedConfig:
    """Read what a saved model is, without building it.

    Args:
        folder: A folder that :func:`save` wrote, or a plain model's in timm's hub format.

    Raises:
        FileNotFoundError: The folder or its ``config.json`` is missing.
        ValueError: The config is broken or written by a newer version.
    """
    folder = check_folder(folder)
    config = read_config(folder)
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
            class_names=names_in_order(config.get("label_names", settings.get("label_names"))),
            mergers=saved_mergers(config, folder),
        )
    except KeyError as error:
        raise ValueError(f"{folder / CONFIG_NAME} does not say {error}") from error


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder as a path; refused, with what would do, where it is none."""
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    if path.suffix in PICKLES:
        raise ValueError(how_to_convert(path))
    if path.is_file():
        raise ValueError(f"folder ({path}) is a file: give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    if re.fullmatch(r"(hf[-_]hub:)?[\w.-]+/[\w.-]+(@[\w.-]+)?", str(folder)):
        raise FileNotFoundError(
            f"folder ({folder}) does not exist; if it is a name on the Hugging Face hub, download it first "
            "(huggingface_hub.snapshot_download) and give that folder"
        )
    raise FileNotFoundError(f"folder ({folder}) does not exist")


def how_to_convert(path: Path) -> str:
    """Why pickled weights are not loaded, and how to come to a folder that is."""
    return (
        f"{path} is a pickle, which can run any code when it is read, so it is not loaded; convert it once: make the "
        "model with timm.create_model and insert, then model.load_state_dict(torch.load(path, weights_only=True)) "
        "and patchmerger.save(model, folder)"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``, which names an architecture."""
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


def saved_mergers(config: dict[str, Any], folder: Path) -> tuple[SavedMerger, ...]:
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


def names_in_order(names: Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...] | None:
    """In order of the classes; timm also takes a dict of class number → name, whose keys are strings in JSON."""
    if isinstance(names, Mapping):
        names = [names.get(str(i), str(i)) for i in range(1 + max(map(int, names)))] if names else None
    return tuple(names) if names else None


def describe_mergers(model: nn.Module) -> list[SavedMerger]:
    """The mergers in a model as the config keeps them; a reducer that could not be built again is refused."""
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


def insert_saved(model: nn.Module, saved: SavedMerger) -> None:
    """Put a merger that a config describes into ``model``, in place."""
    if saved.reducer == "AveragePool":
        insert(model, saved.num_tokens, saved.after, prefix=saved.prefix, reducer=AveragePool(saved.num_tokens))
        return
    if saved.reducer != "PatchMerger" or saved.norm is None or saved.scale is None:
        raise ValueError(f"the merger after block {saved.after} is not understood: {saved}")
    insert(model, saved.num_tokens, saved.after, prefix=saved.prefix, norm=saved.norm, scale=saved.scale)
    module = next(cast(PatchMerger, m.module) for m in mergers(model) if m.after == saved.after)
    if module.norm is not None and saved.eps is not None:
        module.norm.eps = saved.eps
