"""Find a model by what a person calls it: an architecture, a folder, a file, a name on the Hub, or the model itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts.example_inputs import check_patches, size_in
from patchmerger.hosts.state import wrapped_by
from patchmerger.hub.checkpoints import build_from_weights
from patchmerger.hub.folders import CONFIG_NAME, PICKLES, PROCESSOR_NAME, WEIGHTS_NAME, find_folder, how_to_convert
from patchmerger.hub.libraries import library_of_model
from patchmerger.hub.saved_model import SavedModel, is_multi_label
from patchmerger.hub.saving import save
from patchmerger.hub.timm import check_model_name
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.tensors import read_tensors


@dataclass(frozen=True)
class FoundModel:
    """A model, and what is known of it.

    Attributes:
        name: What to call it: as it was asked for, or the name of its class.
        model: The model.
        preprocessing: How its images are prepared; ``None`` where that is not known.
        class_names: One name a class; ``None`` where they are not known.
        image_processor: The one that its folder of transformers holds.
        multi_label: Whether an image may have several classes, as far as the folder or the model says so.
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] | None = None
    image_processor: Any = field(default=None, repr=False)
    multi_label: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all weights, the same in every process."""
        return weights_fingerprint(self.model)

    def save(
        self,
        model: nn.Module,
        folder: Path,
        *,
        class_names: tuple[str, ...] | None = None,
        multi_label: bool = False,
        overwrite: bool = False,
    ) -> Path:
        """Save ``model``, which was made from this one, with the preprocessing of this one.

        Args:
            model: The model, with mergers or without.
            folder: As for :func:`patchmerger.save`.
            class_names: One name a class; by default those of this model.
            multi_label: Whether an image may have several classes, where this model does not say so already.
            overwrite: As for :func:`patchmerger.save`.
        """
        return save(
            model,
            folder,
            preprocessing=self.preprocessing if self.image_processor is None else None,
            image_processor=self.image_processor,
            class_names=class_names or self.class_names,
            multi_label=multi_label or self.multi_label,
            overwrite=overwrite,
        )


def find_model(
    model: str | Path | nn.Module | FoundModel,
    *,
    architecture: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> FoundModel:
    """Find a model.

    Args:
        model: A folder (of ``patchmerger.save``, of a run, of timm or of transformers), a safetensors file, an
            architecture of timm with weights, ``"user/name"`` on the Hugging Face Hub, or a model; what was found
            already stays as it is. A folder goes before a name.
        architecture: For a safetensors file, timm's name of the architecture.
        model_args: For a safetensors file, further arguments of ``timm.create_model``.
        image_size: For an architecture, pixels to build it for, one number or (height, width); its own by default.

    Returns:
        The model: as it is where it was given, else in eval mode.

    Raises:
        ValueError: A model that is not known or has no weights, or arguments that do not fit it.
        FileNotFoundError: There is no such folder or file.
    """
    if isinstance(model, FoundModel):
        return model
    name = host_class(model).__name__ if isinstance(model, nn.Module) else str(model)
    given = [
        f"{option} ({value!r})"
        for option, value in (("architecture", architecture), ("model_args", model_args))
        if value
    ]
    if given and not name.endswith((".safetensors", *PICKLES)):
        raise ValueError(f"{given[0]} is for a safetensors file, and model ({name}) is none")
    if isinstance(model, nn.Module):
        if (wrapper := wrapped_by(model)) is not None:
            raise ValueError(f"model ({type(model).__name__}): {wrapper[0]}; {wrapper[1]}")
        return known_model(name, model)
    place = locate(model)
    if isinstance(place, Path) and not place.is_file():
        if given:
            raise ValueError(f"{given[0]} is for weights alone, and {CONFIG_NAME} beside {model} says it")
        return _from_folder(name, place)
    if isinstance(place, Path):
        return known_model(name, _from_file(place, architecture, dict(model_args or {})))
    if not timm.is_model_pretrained(place):
        raise ValueError(f"model ({place}): timm has no weights under that name, and random ones are of no use here")
    size = size_in(image_size)
    args: dict[str, Any] = {} if size is None else {"img_size": size}
    made: nn.Module = timm.create_model(place, pretrained=True, **args)
    return known_model(name, made.eval(), size)


def known_model(name: str, model: nn.Module, size: tuple[int, int] | None = None) -> FoundModel:
    """A model in memory, and what its library says of it; of a class of one's own nothing is known.

    ``size`` is what it was made for, (height, width), where it was made for a size.
    """
    if size is not None:
        check_patches(model, size)
    library = library_of_model(model)
    if library is None:
        return FoundModel(name, model)
    preprocessing, names = library.preprocessing_of(model), library.class_names_of(model)
    return FoundModel(name, model, preprocessing, names, multi_label=is_multi_label(model))


def known_preprocessing(preprocessing: Preprocessing | None, model: str) -> Preprocessing:
    """How the images of a model are prepared, by its name refused with the cure where that is not known."""
    if preprocessing is None:
        raise ValueError(
            f"model ({model}) does not say how its images are prepared: give preprocessing, such as "
            "patchmerger.data.Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
        )
    return preprocessing


def locate(model: str | Path, argument: str = "model") -> Path | str:
    """Where a model is: its file or folder (of a run: that of its model), or the name of an architecture of timm.

    A file ``model.safetensors`` beside its ``config.json`` is their folder.
    A name on the Hub is downloaded, and the folder is that of the download. Errors call it ``argument``.

    Raises:
        ValueError: No folder, and no name that timm knows; a pickle.
        FileNotFoundError: No such folder or file, no such model on the Hub, or no way to reach it.
    """
    path, name = Path(model).expanduser(), str(model)
    if path.suffix in PICKLES:
        raise ValueError(how_to_convert(path))
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"{argument} ({path}) does not exist")
        return path.parent if path.name == WEIGHTS_NAME and (path.parent / CONFIG_NAME).is_file() else path
    if path.exists() or "/" in name:
        try:
            return find_folder(name, None)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{argument}: {error}") from error
    try:
        check_model_name(name)
    except ValueError as error:
        reason = str(error).removeprefix(f"model.name ({name!r}) ")
        raise ValueError(f"{argument} ({name}) is no folder here, and {reason}") from error
    return name


_OF_A_RUN = {"training", "grad_checkpointing", "gradient_checkpointing", "fused_attn", "name_or_path"}


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all weights and of the settings of all parts, the same in every process.

    Settings tell models apart whose weights have the same shapes, such as those of two and of four heads.
    """
    digest = hashlib.sha256()
    for name, part in model.named_modules():
        settings = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key not in _OF_A_RUN and isinstance(value, bool | int | float | str)
        }
        digest.update(f"{name} {host_class(part).__name__} {sorted(settings.items())}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_file(path: Path, architecture: str | None, args: dict[str, Any]) -> nn.Module:
    if architecture is None:
        raise ValueError(
            f"model ({path}) holds weights alone: name the architecture, such as --architecture vit_small_patch16_224"
        )
    check_model_name(architecture)
    return build_from_weights(read_tensors(path), architecture, args, path)


def _from_folder(name: str, folder: Path) -> FoundModel:
    saved = SavedModel(folder)
    known, processor = saved.description, None
    if known.library == "transformers" and (folder / PROCESSOR_NAME).is_file():
        processor = import_module("transformers").AutoImageProcessor.from_pretrained(str(folder))
    return FoundModel(name, saved.load(), known.preprocessing, known.class_names, processor, known.multi_label)
