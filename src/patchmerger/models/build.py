"""A model from settings: a timm ViT by name, with a merger or without."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

import timm
from torch import nn

from patchmerger.hosts import find_host
from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.insertion.inserting import insert
from patchmerger.merger import init_with_logit_std
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.presets import preset
from patchmerger.zoo import without_merger


def build_model(settings: ModelSettings, merge: MergeSettings | None = None, *, num_classes: int) -> nn.Module:
    """Build a timm model, with a merger where ``merge`` is given.

    Args:
        settings: The model; its name must be given (see :meth:`ModelSettings.resolve`).
        merge: The merger; ``None`` for the plain model.
        num_classes: Outputs of the head.

    Raises:
        ValueError: timm does not know the name or an argument, or has no weights under that name.
        UnsupportedModelError: The model cannot take a merger.
    """
    if settings.name is None:
        raise ValueError("model.name must be given: a timm architecture, such as 'vit_small_patch16_224'")
    check_model_name(settings.name)
    if settings.pretrained and not timm.is_model_pretrained(settings.name):
        raise ValueError(f"model.pretrained is set, but timm has no weights for {settings.name!r}")
    args = settings.args | _without_merger(settings.name, settings.args)
    try:
        model: nn.Module = timm.create_model(
            settings.name, pretrained=settings.pretrained, num_classes=num_classes, **args
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"model.args ({settings.args}) do not fit {settings.name}: {error}") from error
    return model if merge is None else apply_merge(model, merge)


def apply_merge(model: nn.Module, merge: MergeSettings) -> nn.Module:
    """Insert the mergers that ``merge`` describes into ``model``, in place."""
    where: dict[str, Any] = {"after": merge.after, "prefix": merge.prefix, "positions": merge.positions}
    if merge.keep_rate is None:
        where["num_tokens"] = merge.num_tokens
    else:
        where["keep_rate"] = merge.keep_rate
    if merge.reducer != "patchmerger":
        return insert(model, reducer=merge.reducer, **where)
    arguments = preset(merge.preset, find_host(model).dim)
    given = {"norm": merge.norm, "scale": merge.scale, "prior": merge.prior}
    arguments |= {name: value for name, value in given.items() if value is not None}
    if merge.logit_std is not None:
        arguments["init"] = init_with_logit_std(merge.logit_std, arguments["scale"])
    return insert(model, **where, **arguments)


def _without_merger(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """What leaves the own merger of a model of the zoo out: the merge settings say what merges."""
    without = without_merger(name)
    merging = sorted({field.name for field in fields(MergeSettings)} & args.keys())
    if without and merging:
        options = " and ".join(f"merge.{option}" for option in merging)
        raise ValueError(f"model.args ({args}) describe the merger of {name}: give {options} instead")
    return without


def check_model_name(name: str) -> None:
    """Raise ``ValueError`` with close names where timm does not know ``name``."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return
    close = difflib.get_close_matches(architecture, timm.list_models(["vit_*", "deit*", "patchmerger_*"]), n=3)
    close = close or difflib.get_close_matches(architecture, timm.list_models(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models('*vit*') lists them"
    raise ValueError(f"model.name ({name!r}) is no architecture that timm {timm.__version__} knows; {hint}")


def check_patches(model: Any, size: tuple[int, int]) -> None:
    """Refuse images, (height, width) in pixels, of which timm would cut the edges off."""
    patch: tuple[int, int] = tuple(getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1)))
    if any(pixels % side for pixels, side in zip(size, patch, strict=True)):
        fitting = tuple(max(1, round(pixels / side)) * side for pixels, side in zip(size, patch, strict=True))
        raise ValueError(f"image_size {size} does not divide by the patch size {patch}: take {fitting}, say")


def square_input(model: nn.Module) -> int:
    """The side of the square images that a model takes, in pixels.

    Raises:
        ValueError: They are not square, or the model does not say their size.
    """
    height, width = image_size_of(model)
    if height != width:
        raise ValueError(f"model.args make a model for images of {height} × {width} pixels; square ones are needed")
    return height
