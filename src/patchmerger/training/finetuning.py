"""What fine-tuning starts from: a saved or pretrained model, for other classes and images of another size."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import timm
from torch import nn

from patchmerger.hosts.example_inputs import check_patches, example_input, fit_to_size, image_size_of
from patchmerger.hub import save
from patchmerger.hub.checkpoints import build_from_weights, state_dict_mismatch
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.libraries import savable_library
from patchmerger.hub.saved_changes import SavedMerger, describe_mergers, make_changes
from patchmerger.hub.saved_model import SavedModel
from patchmerger.hub.timm import check_model_name
from patchmerger.insertion.inserting import remove
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.build import apply_merge, build_model
from patchmerger.models.classifier import Classifier, check_channels
from patchmerger.models.finding import locate
from patchmerger.models.settings import Merge, MergeSettings, ModelSettings
from patchmerger.reducers.names import METHODS
from patchmerger.runs.tensors import read_tensors
from patchmerger.training.settings import Recipe
from patchmerger.training.trainer import check_weights
from patchmerger.zoo import without_merger

Init: TypeAlias = str | Path


@dataclass(frozen=True)
class Start:
    """A model that is ready to be trained; its head starts anew where it was trained on other classes."""

    model: nn.Module
    new_head: bool


def content_of(init: Init) -> str:
    """What a run records of the model that it starts from: a hash of its files, or its name in timm."""
    place = locate(init, "init")
    if isinstance(place, str):
        return place
    content = hashlib.sha256()
    files = [place] if place.is_file() else place.iterdir()
    for path in sorted(p for p in files if p.name == CONFIG_NAME or p.suffix == ".safetensors"):
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{content.hexdigest()}"


def start_model(
    recipe: Recipe, model: nn.Module | None = None, *, class_names: tuple[str, ...], native_size: int
) -> Start:
    """The model at step 0: a copy of the one that is given, loaded where ``recipe.init`` is, else new.

    ``native_size`` is that of the images, in pixels, for which the default model is made where none is named.
    """
    if model is not None:
        return _given(copy.deepcopy(model), recipe, len(class_names))
    if recipe.init is not None:
        return start_from(recipe.init, recipe.model, recipe.merge, class_names=class_names)
    made = build_model(recipe.model.resolve(native_size), recipe.merge, num_classes=len(class_names))
    return Start(made, new_head=True)


def start_from(init: Init, model: ModelSettings, merge: Merge, *, class_names: tuple[str, ...]) -> Start:
    """Load a model to fine-tune; ``init`` is as in :class:`~patchmerger.training.settings.Recipe`.

    Position embeddings are resized by timm where ``model.args`` has another ``img_size``. The mergers stay as they
    are, for what they give does not depend on the number of tokens that arrive.

    Args:
        init: What to load; of an architecture of timm its weights, with a tag, ``"ARCHITECTURE.TAG"``, those.
        model: Of its settings only ``args``, and of those only ``img_size``, drop rates and ``depth``, which takes the
            first blocks alone: the rest is loaded. For a safetensors file, which holds weights alone, ``name`` and all
            of ``args``.
        merge: ``"auto"`` leaves the model as it was saved, merged or plain. A merger is put into a plain model, and
            must be the one that is there in a merged one.
        class_names: Of the images. The head is kept where the model was trained on these very classes.
    """
    place = locate(init, "init")
    alone = isinstance(place, Path) and place.is_file()
    _check_settings(init, model, alone=alone)
    saved = SavedModel(place) if isinstance(place, Path) and not alone else None
    if saved is not None:
        net = _saved(saved, init, model.args)
    elif isinstance(place, Path):
        net = _from_weights(place, model)
    else:
        if not timm.is_model_pretrained(place):
            raise ValueError(f"init ({place}): timm has no weights of that name")
        net = _create(place, place, model.args)
    check_channels(example_input(net).images.shape[1], str(init))
    _merge(net, merge, init)
    new_head = saved is None or saved.description.class_names != class_names
    if new_head:
        cast(Any, net).reset_classifier(len(class_names))
    return Start(net, new_head)


def _given(model: nn.Module, recipe: Recipe, num_classes: int) -> Start:
    """A model in memory, made sure that it can be trained and saved."""
    name = host_class(model).__name__
    if recipe.init is not None or recipe.model != ModelSettings():
        raise ValueError(f"model ({name}) is given, so that the recipe's model, init and image_size must be left out")
    library = savable_library(model).name
    if library not in ("timm", "torchvision"):
        raise ValueError(
            f"model ({name}) is of {library}: only models of timm and torchvision are trained here; others by "
            "their own library or in a loop of your own"
        )
    classifier = Classifier(model)
    check_channels(classifier.channels, name)
    outputs = classifier.num_outputs
    if outputs != num_classes:
        raise ValueError(
            f"model ({name}) has {outputs} outputs, but data has {num_classes} classes: give it a head for them first, "
            f"such as model.reset_classifier({num_classes})"
        )
    check_weights(model, recipe.training.precision, "model")
    _merge(model, recipe.merge, name)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model")  # what could not be saved is refused before it is trained
    return Start(model, new_head=False)


def hand_over(trained: nn.Module, model: nn.Module, merge: Merge) -> None:
    """Give a model in memory, which is as the training began with it, the mergers and weights that it ended with."""
    _merge(model, merge, host_class(model).__name__)
    model.load_state_dict(trained.state_dict())


def _check_settings(init: Init, model: ModelSettings, *, alone: bool) -> None:
    if alone and model.name is None:
        raise ValueError(
            f"init ({init}) holds weights alone: name the architecture in model.name, such as vit_small_patch16_224"
        )
    for option, value in (("model.name", None if alone else model.name), ("model.pretrained", model.pretrained)):
        if value:
            raise ValueError(f"{option} ({value}) contradicts init ({init}), which is the model: give one of them")
    if alone:
        return
    others = [key for key in model.args if key not in ("img_size", "depth") and "drop" not in key]
    if others:
        raise ValueError(
            f"model.args ({', '.join(others)}) would make another model than init ({init}): beside init they may be "
            "img_size, depth, which takes its first blocks, and drop rates, such as drop_path_rate"
        )


def _from_weights(path: Path, model: ModelSettings) -> nn.Module:
    """A model of timm with the weights in a file, built in their size and then set to the one that is asked for."""
    architecture = cast(str, model.name)
    check_model_name(architecture)
    args = without_merger(architecture) | model.args
    size = args.pop("img_size", None)
    net = build_from_weights(read_tensors(path), architecture, args, path)
    if size is not None:
        wanted = (size, size) if isinstance(size, int) else tuple(size)
        check_patches(net, wanted)
        if image_size_of(fit_to_size(net, wanted)) != wanted:
            raise ValueError(f"image_size {wanted}: {path} is for {image_size_of(net)}, and timm sets no other size")
    return net


def _saved(saved: SavedModel, init: Init, args: dict[str, Any]) -> nn.Module:
    """A saved model of timm, built for other arguments; its weights go through timm's own filter."""
    known = saved.description
    if known.library != "timm":
        raise ValueError(f"init ({init}) is a model of {known.library}: only models of timm are fine-tuned")
    weights = saved.weights()
    plain = {name: tensor for name, tensor in weights.items() if not _is_ours(name)}
    overlay = {"state_dict": plain, "source": ""}
    own = without_merger(known.architecture) | {"num_classes": known.num_classes}
    net = _create(f"local-dir:{saved.folder}", init, own | args, pretrained_cfg_overlay=overlay)
    cast(Any, net).pretrained_cfg["state_dict"] = None  # else they would stay in memory, and in each copy
    make_changes(net, saved.changes, weights)
    adapted = {name: tensor for name, tensor in net.state_dict().items() if not _is_ours(name)}
    merged = adapted | {name: tensor for name, tensor in weights.items() if _is_ours(name)}
    mismatch = state_dict_mismatch(net, merged)
    if mismatch:
        raise ValueError(f"init ({init}) has other mergers in its weights than in its {CONFIG_NAME}: {mismatch}")
    net.load_state_dict(merged)
    return net


def _is_ours(name: str) -> bool:
    """Whether a weight is that of a merger or of placed tokens, and not of timm's model."""
    return ".merger." in name or ".placement." in name


def _create(name: str, init: Init, args: dict[str, Any], **options: Any) -> nn.Module:
    """A model of timm with its weights; with ``depth`` among the arguments its first blocks alone."""
    whole = {key: value for key, value in args.items() if key != "depth"}
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **whole, **options)
        if "depth" not in args:
            return model
        depth = len(cast(Any, model).blocks)
        if args["depth"] not in range(1, depth + 1):
            raise ValueError(f"model.args: depth ({args['depth']}) must be one of the {depth} blocks of init ({init})")
        cut: nn.Module = timm.create_model(name, pretrained=False, **args, **options)
        weights = model.state_dict()
        cut.load_state_dict({key: weights[key] for key in cut.state_dict()})
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(f"init ({init}) cannot be loaded with model.args ({args}): {error}") from error
    except OSError as error:
        raise FileNotFoundError(f"init ({init}): its weights cannot be had: {error}") from error
    return cut


def _merge(model: nn.Module, merge: Merge, init: Init) -> None:
    """Put the merger that is asked for into a plain model; make sure that a merged one has it."""
    present = describe_mergers(model)
    if merge == "auto" or (merge is None and not present):
        return
    if not present:
        apply_merge(model, cast(MergeSettings, merge))
        return
    way_out = "leave merge out to go on with what is there, or take it out with patchmerger.remove and save that"
    if merge is None:
        raise ValueError(f"merge (null) asks for a plain model, but init ({init}) has {_words(present)}: {way_out}")
    asked = describe_mergers(apply_merge(remove(copy.deepcopy(model)), merge))
    if not asked or _words(asked, exactly=True) != _words(present, exactly=True):
        raise ValueError(
            f"merge asks for {_words(asked or present, exactly=True)}, but init ({init}) has "
            f"{_words(present, exactly=True)}: {way_out}"
        )


def _words(kept: Sequence[SavedMerger], *, exactly: bool = False) -> str:
    """Mergers in words; with all their settings but the norm's eps, which no option says."""
    told = []
    for merger in map(vars, kept):
        rest = {k: v for k, v in merger.items() if k not in ("after", "num_tokens", "reducer", "eps") and v is not None}
        settings = ", ".join(f"{k} {v}" for k, v in rest.items())
        told.append(
            f"{METHODS[merger['reducer']].title} to {merger['num_tokens']} tokens after block {merger['after']}"
            + (f" ({settings})" if exactly else "")
        )
    return " and ".join(told)
