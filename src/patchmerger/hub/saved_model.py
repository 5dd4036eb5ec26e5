"""A saved model: what its folder says of it, and the model itself with its mergers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from patchmerger.hub.buffers import BUFFERS, give_dtypes, other_dtypes
from patchmerger.hub.checkpoints import state_dict_mismatch, without_prefixes
from patchmerger.hub.folders import CONFIG_NAME, find_folder
from patchmerger.hub.libraries import library_of_config
from patchmerger.hub.library import Library, PlainConfig
from patchmerger.hub.saved_changes import SavedMerger, read_changes
from patchmerger.hub.weights import Weights, limited_to, read_weights, refuse_absurd_depth, weights_file
from patchmerger.placing.settings import PlacingSettings
from patchmerger.runs.environment import find_device
from patchmerger.runs.files import read_object, write_json
from patchmerger.runs.meta_device import meta_device

_PROBLEM, _SEVERAL, _ONE = "problem_type", "multi_label_classification", "single_label_classification"
"""What a config of transformers says of the labels of an image, under the same key in ours of other libraries."""


@dataclass(frozen=True)
class SavedConfig(PlainConfig):
    """What a saved model is and how its images are prepared.

    Attributes:
        architecture: timm's name of the model, or the name of its class.
        num_classes: Outputs of the head; 0 where there is none.
        input_size: (channels, height, width) of an image; ``None`` where there is no one size.
        preprocessing: How images are prepared; ``None`` where the folder does not say (of transformers: without an
            image processor).
        class_names: One name a class, or ``None``.
        library: ``"timm"``, ``"transformers"`` or ``"torchvision"``.
        mergers: First to last.
        placing: How its tokens are placed; ``None`` where they are the patches of a grid.
        multi_label: Whether an image may have several classes.
    """

    library: str
    mergers: tuple[SavedMerger, ...]
    placing: PlacingSettings | None = None
    multi_label: bool = False


class SavedModel:
    """The folder of a saved model, whose config is read once.

    Raises:
        FileNotFoundError: There is no ``config.json``.
        ValueError: It is broken, or written by a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_object(folder / CONFIG_NAME)
        self.library = library_of_config(self.config, folder)
        self.changes = read_changes(self.config, folder)

    @cached_property
    def description(self) -> SavedConfig:
        """What its config says, without building the model."""
        source = self.folder / CONFIG_NAME
        try:
            plain = self.library.describe(self.config, self.folder)
        except KeyError as error:
            raise ValueError(f"{source} does not say {error}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{source} says something in a form that is not understood: {error}") from error
        return SavedConfig(
            **vars(plain),
            library=self.library.name,
            mergers=self.changes.mergers,
            placing=self.changes.placing,
            multi_label=self.config.get(_PROBLEM) == _SEVERAL,
        )

    def weights(self) -> Weights:
        """As they are on disk."""
        return read_weights(self.folder, self.library.conversion)

    def build(self) -> tuple[nn.Module, Weights]:
        """The model with weights as they fall, and those to load; random numbers elsewhere stay as they are."""
        source, weights = self.folder / CONFIG_NAME, self.weights()
        refuse_absurd_depth(self.config, weights, source)
        with torch.random.fork_rng(devices=[]):
            with meta_device(), limited_to(weights, source):
                self.library.make(self.folder, self.config)
            return self.library.build(self.folder, self.config, self.changes, weights)

    def assign(self, model: nn.Module, weights: Weights) -> None:
        """Give a model that was built from the folder these weights, each in its number format, and buffers like them.

        Assigned, not copied: a copy would turn bfloat16 weights into float32.
        """
        model.load_state_dict(weights, assign=True)
        if self.library.buffers_follow_weights:
            give_dtypes(model, weights, self.config.get(BUFFERS, {}))

    def load(self) -> nn.Module:
        """The model in eval mode, with its weights; see :func:`load`."""
        model, weights = self.build()
        source = weights_file(self.folder)
        mismatch = state_dict_mismatch(model, weights)
        if mismatch:
            weights = without_prefixes(weights, model, source)
            mismatch = state_dict_mismatch(model, weights)
        if mismatch:
            raise ValueError(f"{source} is of another model than its {CONFIG_NAME}: {mismatch}")
        self.assign(model, weights)
        if self.config.get(_PROBLEM) == _SEVERAL:
            cast(Any, model).problem_type = _SEVERAL  # of which timm and torchvision know nothing
        return model.eval()


def load(
    folder: str | os.PathLike[str], *, revision: str | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Load a model that :func:`patchmerger.save` wrote, or a plain one of timm or transformers.

    Every weight must be there and have its place: none is left out or started anew in silence.

    Args:
        folder: A folder with ``config.json`` and ``model.safetensors`` (or shards and their index), the folder of a
            run, or the name of a model on the Hugging Face Hub: ``"user/name"``, ``"user/name@revision"``. A folder
            of that name goes first.
        revision: Branch, tag or commit of a name on the Hub.
        device: Where the model goes.

    Returns:
        The model in eval mode, each weight in the dtype that it was saved in. A timm model's preprocessing is its
        ``pretrained_cfg``, so ``timm.data.resolve_model_data_config(model)`` knows it.

    Raises:
        FileNotFoundError: The folder or a file in it is missing; no such name on the Hub, or no way to reach it.
        ValueError: A file is broken, of another model, pickled or written by a newer version; an architecture
            that its library does not know; or the device is not there, before anything is read or downloaded.
        ModuleNotFoundError: The model is one of transformers, which is not installed.
    """
    place = find_device(device, may_be_meta=True)
    return SavedModel(find_folder(folder, revision)).load().to(place)


def describe(folder: str | os.PathLike[str], *, revision: str | None = None) -> SavedConfig:
    """Read what a saved model is, without building it.

    Args:
        folder: A folder that :func:`patchmerger.save` wrote or that of a run, a plain model's of timm or
            transformers, or a name on the Hugging Face Hub.
        revision: Branch, tag or commit of a name on the Hub.

    Raises:
        FileNotFoundError: The folder or its ``config.json`` is missing.
        ValueError: The config is broken or written by a newer version.
    """
    return SavedModel(find_folder(folder, revision, weights=False)).description


def is_multi_label(model: nn.Module) -> bool:
    """Whether an image may have several classes, as its config says (transformers) or the folder that it is from."""
    return getattr(getattr(model, "config", model), _PROBLEM, None) == _SEVERAL


def write_problem(folder: Path, multi_label: bool) -> None:
    """Say in the config of a folder whether an image may have several classes."""
    config = read_object(folder / CONFIG_NAME)
    if multi_label != (config.get(_PROBLEM) == _SEVERAL):
        write_json(folder / CONFIG_NAME, config | {_PROBLEM: _SEVERAL if multi_label else _ONE})


def write_buffers(folder: Path, library: Library, model: nn.Module) -> None:
    """Say in the config of a folder which buffers of a model have another number format than its weights."""
    if library.buffers_follow_weights and (others := other_dtypes(model)):
        write_json(folder / CONFIG_NAME, read_object(folder / CONFIG_NAME) | {BUFFERS: others})
