"""Load a saved model with its mergers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from patchmerger.hub.checkpoints import without_prefixes
from patchmerger.hub.folders import CONFIG_NAME, find_folder, read_object
from patchmerger.hub.saved_config import library_of_config
from patchmerger.hub.saved_mergers import read_mergers
from patchmerger.hub.size_check import limited_to, refuse_absurd_depth
from patchmerger.hub.weights import Weights, read_weights, state_dict_mismatch, weights_file


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
            that its library does not know.
        ModuleNotFoundError: The model is one of transformers, which is not installed.
    """
    path = find_folder(folder, revision)
    model, weights = open_folder(path)
    mismatch = state_dict_mismatch(model, weights)
    if mismatch:
        weights = without_prefixes(weights, model, weights_file(path))
        mismatch = state_dict_mismatch(model, weights)
    if mismatch:
        raise ValueError(f"{weights_file(path)} is of another model than its {CONFIG_NAME}: {mismatch}")
    # Assigned, not copied: a copy would turn bfloat16 weights into float32.
    model.load_state_dict(weights, assign=True)
    return model.eval().to(device)


def open_folder(folder: Path) -> tuple[nn.Module, Weights]:
    """The model of a folder with weights as they fall, and those to load; random numbers elsewhere stay as they are."""
    config = read_object(folder / CONFIG_NAME)
    library = library_of_config(config, folder)
    mergers = read_mergers(config, folder)
    weights = read_weights(folder, library.conversion)
    refuse_absurd_depth(config, weights, folder / CONFIG_NAME)
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"), limited_to(weights, folder / CONFIG_NAME):
            library.make(folder, config)
        return library.build(folder, config, mergers, weights)
