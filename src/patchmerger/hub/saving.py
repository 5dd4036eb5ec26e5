"""Save a model with its mergers, once it is sure that what is built again from the folder is the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.checkpoints import state_dict_mismatch
from patchmerger.hub.folders import check_target
from patchmerger.hub.libraries import savable_library
from patchmerger.hub.library import Library, SaveOptions
from patchmerger.hub.saved_changes import write_changes
from patchmerger.hub.saved_model import SavedModel, is_multi_label, write_buffers, write_problem
from patchmerger.mechanism.modes import eval_mode
from patchmerger.runs.files import atomic_folder

_DROPS = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
_PLAIN = (bool, int, float, str, tuple)
# Settings of a run or of a start, which do not change what the trained model computes.
_RUN_TIME = {"training", "grad_checkpointing", "distilled_training", "fused_attn", "init_values", "weight_init_mode"}


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_processor: Any = None,
    multi_label: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a model, its mergers and its preprocessing, so that :func:`patchmerger.load` gives the same outputs.

    Before the folder appears, it is read back and the model built from it compared with ``model``: its parts, their
    settings, its weights and its outputs. Drop rates are settings of a training run and are not saved.

    Args:
        model: A model made by ``timm.create_model``, of a class of transformers, or torchvision's
            ``VisionTransformer``, with or without mergers.
        folder: Where to; made with its parents. It appears atomically.
        preprocessing: How images are prepared for the model; by default as ``model.pretrained_cfg`` says (timm), as
            for ImageNet (torchvision), or not said (transformers).
        class_names: One name a class, in the order of the outputs; by default those that ``model`` was loaded with
            (timm and transformers).
        model_args: Arguments of ``timm.create_model`` that timm has no record of, because the model was changed
            by hand after it was made (``{"depth": 6}`` where blocks were taken away, say).
        image_processor: That of a model of transformers, in place of ``preprocessing``.
        multi_label: Whether an image may have several classes, so that ``patchmerger predict`` gives each a probability
            of its own; by default as ``model.config`` says (transformers) or the folder that it was loaded from.
        overwrite: Replace a model that was saved in ``folder``. The old one stays until the new one is complete.

    Returns:
        ``folder`` as a path.

    Raises:
        FileExistsError: ``folder`` has something in it and ``overwrite`` is false, or it holds other things than
            a saved model.
        ValueError: The model cannot be built again from its configuration, is of a class of your own, has a reducer
            that is not of this library, is wrapped or sharded, or an option does not fit; nothing was written.
    """
    library = savable_library(model)
    options = SaveOptions(preprocessing, class_names, dict(model_args or {}), image_processor)
    changes = write_changes(model)
    target = Path(folder).expanduser().resolve()
    check_target(target, overwrite=overwrite)
    with atomic_folder(target, new=not overwrite) as made:
        library.write(model, made, changes, options)
        write_problem(made, is_multi_label(model) if multi_label is None else multi_label)
        write_buffers(made, library, model)
        check_rebuilt(model, SavedModel(made))
    return Path(folder)


def check_rebuilt(model: nn.Module, saved: SavedModel) -> None:
    """Refuse a model whose weights, settings or outputs are not those of what was read back from its folder.

    Heads, activations and the like leave no trace in the weights, and a fresh network can hide them from its outputs
    too (a head of zeros, a small LayerScale), so the settings of all parts are compared as well. What is built again
    gets the model's own weights.
    """
    library, (rebuilt, read) = saved.library, saved.build()
    weights = model.state_dict()
    difference = (
        state_dict_mismatch(rebuilt, weights)
        or _other_setting(model, rebuilt, library.own_settings)
        or state_dict_mismatch(model, read)
        or _value_mismatch(weights, read)
    )
    if difference is None:
        saved.assign(rebuilt, weights)  # the very tensors of the model: on its device, no memory
        library.run_alike(rebuilt, model)
        difference = _other_output(library, model, rebuilt)
    if difference:
        raise ValueError(
            f"model cannot be built again from what {library.name} records of it: built again it has {difference}; "
            f"{library.advice}"
        )


def _value_mismatch(weights: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> str | None:
    """Which of ``weights`` came back from disk in another dtype or with other values; ``None`` where none did."""
    for name, tensor in weights.items():
        again = read[name]
        if again.dtype != tensor.dtype:
            return f"{name} in {again.dtype}, not {tensor.dtype} (give all weights of the model one dtype)"
        if not torch.equal(again, tensor.detach().to(again.device)) and bool(tensor.isfinite().all()):
            return f"other values in {name}"
    return None


def _other_setting(model: nn.Module, rebuilt: nn.Module, own: frozenset[str]) -> str | None:
    """The first part of another class or with another setting than in ``model``, drop rates apart."""
    parts = dict(model.named_modules())
    for name, part in rebuilt.named_modules():
        original = parts.get(name)
        if original is None or (isinstance(part, _DROPS) and isinstance(original, _DROPS)):
            continue
        if type(part) is not type(original):
            return f"a {type(part).__name__} as {name or 'model'}, not a {type(original).__name__}"
        for key, value in vars(part).items():
            if key.startswith("_") or "drop" in key or key in _RUN_TIME | own or key not in vars(original):
                continue
            expected = vars(original)[key]
            if isinstance(value, _PLAIN) and isinstance(expected, _PLAIN) and value != expected:
                return f"{name}.{key} = {value!r}, not {expected!r}".removeprefix(".")
    return None


@torch.no_grad()
def _other_output(library: Library, model: nn.Module, rebuilt: nn.Module) -> str | None:
    """How the outputs for a random image differ, if they do."""
    device = next(model.parameters()).device
    rebuilt.to(device).eval()
    # Some models draw at random in evaluation too: a masked autoencoder which patches it leaves out.
    with eval_mode(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        all_given = dict(library.outputs(rebuilt))
        torch.manual_seed(0)
        for stage, expected in library.outputs(model):
            given = all_given.get(stage)
            if not (isinstance(given, Tensor) and isinstance(expected, Tensor) and expected.shape == given.shape):
                return f"another kind of {stage} output"
            if not bool(expected.isfinite().all()):
                raise ValueError(f"{stage} of model gives values that are not finite: such a model is not saved")
            error = (expected - given).abs().max()
            precision = torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0
            if not error <= 10 * precision * expected.abs().max():
                return f"other outputs ({stage} differs by {error:.2g})"
    return None
