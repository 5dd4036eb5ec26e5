"""Save a model with its mergers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.folders import check_target
from patchmerger.hub.libraries import savable_library
from patchmerger.hub.library import SaveOptions
from patchmerger.hub.rebuild_check import check_rebuilt
from patchmerger.hub.saved_changes import write_changes
from patchmerger.hub.saved_model import SavedModel
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
