"""A trained model to be accelerated: found by what a person calls it, with what must be known of its images."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import nn

from patchmerger.acceleration.classifier import Classifier
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub import describe, load
from patchmerger.hub.folders import PICKLES, PROCESSOR_NAME, how_to_convert
from patchmerger.hub.libraries import library_of_model
from patchmerger.inserted import mergers
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.build import check_model_name


@dataclass(frozen=True)
class Teacher:
    """A plain, trained model.

    Attributes:
        name: What to call it.
        net: The model, in eval mode.
        num_classes: Outputs of its head.
        class_names: One name a class, where they are known.
        preprocessing: How its images are prepared.
        fingerprint: A hash of its weights.
        saving: What ``patchmerger.save`` must be told, so that the preprocessing stays as it is.
    """

    name: str
    net: nn.Module
    num_classes: int
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    fingerprint: str
    saving: dict[str, Any] = field(default_factory=dict, repr=False)


def find_teacher(
    model: str | Path | nn.Module,
    *,
    architecture: str | None = None,
    model_args: dict[str, Any] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    crop_pct: float | None = None,
) -> Teacher:
    """Load a trained model and find out how its images are prepared.

    Args:
        model: A folder (of ``patchmerger.save``, of a run, of timm or of transformers), a timm architecture with
            weights, a name on the Hugging Face hub, a safetensors file, or a model.
        architecture: For a safetensors file, timm's name of the architecture.
        model_args: Further arguments of ``timm.create_model`` for it.
        mean: Mean of each channel, in place of what is known of the model.
        std: Standard deviation of each channel, likewise.
        crop_pct: Share of the resized image that is kept in evaluation, likewise.

    Raises:
        ValueError: A model that is not known, has no weights, is no classifier of RGB images or has a merger already.
        FileNotFoundError: There is no such folder or file.
    """
    if architecture is not None and not str(model).endswith(".safetensors"):
        raise ValueError(f"architecture ({architecture!r}) is for a safetensors file, and model ({model}) is none")
    name, net, said = _open(model, architecture, model_args or {})
    if mergers(net):
        raise ValueError(
            f"model ({name}) has a merger already: patchmerger.remove(model) takes it out; patchmerger.fit and "
            "distill train it as it is"
        )
    wrapped = Classifier(net)
    if wrapped.channels != 3:
        raise ValueError(f"model ({name}) takes images of {wrapped.channels} channels; the images here have 3 (RGB)")
    if wrapped.head is None and getattr(net, "num_classes", None) == 0:
        raise ValueError(f"model ({name}) has no classifier (num_classes=0): train one first, then accelerate it")
    mean, std = mean or said.get("mean"), std or said.get("std")
    if mean is None or std is None:
        raise ValueError(
            f"model ({name}) does not say how its images are normalised: give mean and std, such as "
            "--mean [0.5,0.5,0.5] --std [0.5,0.5,0.5]"
        )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean ({list(mean)}) and std ({list(std)}) must be three numbers each, std above 0")
    preprocessing = Preprocessing(
        mean, std, crop_pct or said.get("crop_pct") or 1.0, said.get("interpolation") or "bicubic"
    )
    return Teacher(
        name=name,
        net=net.eval(),
        num_classes=wrapped.num_outputs,
        class_names=said.get("class_names"),
        preprocessing=preprocessing,
        fingerprint=weights_fingerprint(net),
        saving=said.get("saving", asdict(preprocessing)),
    )


def _open(
    model: str | Path | nn.Module, architecture: str | None, args: dict[str, Any]
) -> tuple[str, nn.Module, dict[str, Any]]:
    """The name, the model, and what is known of its images."""
    if isinstance(model, nn.Module):
        return host_class(model).__name__, model, _said_by(model)
    path = Path(model).expanduser()
    if path.suffix in PICKLES:
        raise ValueError(how_to_convert(path))
    if path.suffix == ".safetensors":
        net = _from_file(path, architecture, args)
        return str(path), net, _said_by(net)
    if args:
        raise ValueError(f"model_args ({args}) are for a safetensors file: model ({model}) knows its own")
    if path.is_dir():
        folder = path / "model" if (path / "model" / "config.json").is_file() else path
        return str(path), load(folder), _said_by_folder(folder)
    name = str(model)
    if "/" in name:
        return name, load(name), _said_by_folder(name)
    check_model_name(name)
    if not timm.is_model_pretrained(name):
        raise ValueError(
            f"model ({name!r}): timm has no weights under that name, and there is nothing to keep in random ones"
        )
    net = timm.create_model(name, pretrained=True)
    return name, net, _said_by(net)


def _from_file(path: Path, architecture: str | None, args: dict[str, Any]) -> nn.Module:
    if not path.is_file():
        raise FileNotFoundError(f"model ({path}) does not exist")
    if architecture is None:
        raise ValueError(
            f"model ({path}) holds weights alone: name the architecture, such as --architecture vit_small_patch16_224"
        )
    check_model_name(architecture)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"model ({path}) is cut short or not a safetensors file: {error}") from error
    head = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    classifier = f"{getattr(head, 'classifier', None) or 'head'}.weight"
    known = {"num_classes": len(weights[classifier])} if classifier in weights else {}
    try:
        net: nn.Module = timm.create_model(architecture, **(known | args))
        net.load_state_dict(weights)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"model ({path}) does not fit {architecture} with model_args {args}: {error}") from error
    return net


def _said_by(net: nn.Module) -> dict[str, Any]:
    """What a model in memory says of its images."""
    library = library_of_model(net).name
    if library == "timm":
        config = resolve_model_data_config(net)
        names = getattr(net, "pretrained_cfg", {}).get("label_names")
        return {
            "mean": config["mean"],
            "std": config["std"],
            "crop_pct": config["crop_pct"],
            "interpolation": config["interpolation"],
            "class_names": tuple(names) if isinstance(names, list | tuple) else None,
        }
    if library == "torchvision":
        return {
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
        }
    return {}


def _said_by_folder(folder: Path | str) -> dict[str, Any]:
    """What a saved model says of its images."""
    saved = describe(folder)
    said: dict[str, Any] = {
        "mean": saved.mean, "std": saved.std, "crop_pct": saved.crop_pct,
        "interpolation": saved.interpolation, "class_names": saved.class_names
    }  # fmt: skip
    if saved.library == "transformers" and isinstance(folder, Path) and (folder / PROCESSOR_NAME).is_file():
        processor = import_module("transformers").AutoImageProcessor.from_pretrained(str(folder))
        said["saving"] = {"image_processor": processor}
    return said


def weights_fingerprint(net: nn.Module) -> str:
    """A hash of all weights, the same in every process."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
