"""Save a model with its mergers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.nn.utils import parametrize, prune

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts.state import refuse_unsupported_state
from patchmerger.hosts.wrappers import has_adapters, left_by_peft, wrapped_by
from patchmerger.hub.folders import check_target
from patchmerger.hub.libraries import library_of_model
from patchmerger.hub.library import Library, SaveOptions
from patchmerger.hub.rebuild_check import check_rebuilt
from patchmerger.hub.saved_model import SavedModel
from patchmerger.hub.saved_placing import write_changes
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import atomic_folder


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_processor: Any = None,
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
        check_rebuilt(library, model, *SavedModel(made).build())
    return Path(folder)


def savable_library(model: nn.Module) -> Library:
    """The library that made a model which can be saved.

    Raises:
        ValueError: It only wraps a model, its weights are no plain ones, or elsewhere, or it is of a class of your own;
            the message says what would do.
    """
    if (found := wrapped_by(model)) is not None:
        reason, way_out, _ = found
        raise ValueError(f"model ({host_class(model).__name__}) cannot be saved: {reason}; {way_out}")
    wrapped = left_by_peft(model)
    if wrapped is not None and not has_adapters(model):
        raise ValueError(
            f"model ({host_class(model).__name__}) has {wrapped} in a wrapper that PEFT left there: "
            f"model.set_submodule({wrapped!r}, model.get_submodule({wrapped!r}).modules_to_save['default'])"
        )
    if has_adapters(model):
        raise ValueError(
            f"model ({host_class(model).__name__}) has adapters of PEFT: patchmerger.save(model.merge_and_unload(), "
            "folder) on the PEFT model"
        )
    _refuse_computed_weights(model)
    refuse_unsupported_state(model, "saved")
    for name, tensor in model.state_dict().items():
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"model is sharded ({name} is a DTensor): gather its state dict into a plain model first")
    return library_of_model(model)


def _refuse_computed_weights(model: nn.Module) -> None:
    """Refuse weights that torch computes from others: parametrised, pruned or normed ones."""
    for name, module in model.named_modules():
        found = _computed(module)
        if found is not None:
            tensor, undo = found
            raise ValueError(
                f"model ({host_class(model).__name__}) has a {name}.{tensor} that is computed from others: first "
                f"torch.nn.utils.{undo}(model.get_submodule({name!r}), {tensor!r})"
            )


def _computed(module: nn.Module) -> tuple[str, str] | None:
    """The name of a weight that is computed, and what of ``torch.nn.utils`` makes it a plain one."""
    if parametrize.is_parametrized(module):
        return next(iter(cast(nn.ModuleDict, module.parametrizations))), "parametrize.remove_parametrizations"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return hook._tensor_name, "prune.remove"
        if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
            return cast(Any, hook).name, "remove_weight_norm" if type(
                hook
            ).__name__ == "WeightNorm" else "remove_spectral_norm"
    return None
