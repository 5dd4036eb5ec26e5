"""A model from settings or by name, without trained weights: a timm ViT, with a merger or without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import timm
from torch import nn

from patchmerger.hosts import find_host
from patchmerger.hosts.example_inputs import size_in
from patchmerger.hub.timm import check_model_name
from patchmerger.insertion.inserting import insert
from patchmerger.merger import init_with_logit_std
from patchmerger.models.finding import FoundModel, find_model, known_model, locate
from patchmerger.models.settings import Merge, MergeSettings, ModelSettings
from patchmerger.presets import preset
from patchmerger.runs.meta_device import meta_device
from patchmerger.runs.random_state import seeded
from patchmerger.zoo import without_merger


def build_model(settings: ModelSettings, merge: Merge = None, *, num_classes: int) -> nn.Module:
    """Build a timm model, with a merger where ``merge`` is given.

    Args:
        settings: The model; its name must be given (see :meth:`ModelSettings.resolve`).
        merge: The merger; ``"auto"`` is the default one, ``None`` none.
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
    if merge is None:
        return model
    return apply_merge(model, MergeSettings() if merge == "auto" else merge)


def find_untrained(
    model: str | Path | nn.Module | FoundModel,
    *,
    architecture: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    seed: int | None = None,
) -> FoundModel:
    """Find a model whose weights do not matter: an architecture of timm is made without its own.

    Arguments are as in :func:`~patchmerger.models.find_model`, but ``model_args`` and ``image_size`` are for an
    architecture too. ``seed`` is of the random weights of one; ``None`` makes it on the meta device.

    Raises:
        ValueError: A model that is not known, or arguments that do not fit it.
        FileNotFoundError: There is no such folder or file.
    """
    place = locate(model) if isinstance(model, str | Path) and architecture is None else None
    if not isinstance(place, str):
        return find_model(model, architecture=architecture, model_args=model_args)
    size, args = size_in(image_size), {"num_classes": 1000, **(model_args or {})}
    num_classes = args.pop("num_classes")
    if size is not None:
        args["img_size"] = size
    with seeded(seed or 0), meta_device() if seed is None else nullcontext():
        made = build_model(ModelSettings(place, args), num_classes=num_classes)
    return known_model(place, made.eval(), size)


def apply_merge(model: nn.Module, merge: MergeSettings) -> nn.Module:
    """Insert the mergers that ``merge`` describes into ``model``, in place."""
    where: dict[str, Any] = {"after": merge.after, "prefix": merge.prefix, "positions": merge.positions}
    if merge.keep_rate is None:
        where["num_tokens"] = merge.num_tokens
    else:
        where["keep_rate"] = merge.keep_rate
    if merge.num_heads is not None:
        where["num_heads"] = merge.num_heads
    if merge.reducer != "patchmerger":
        return insert(model, reducer=merge.reducer, **where)
    if not merge.says_queries:
        return insert(model, **where)
    host = find_host(model)
    name = merge.preset or ("default" if merge.prior is None else "located")
    arguments = preset(name, host.dim)
    if name == "scratch":
        rows = host.grid[0] if isinstance(host.grid, tuple) else 0
        if host.grid is None or merge.prefix == "merge":
            arguments |= {"init": None, "prior": None}
        elif merge.keep_rate is not None or max(merge.places()[1]) > rows:  # some rows would begin on the same patches
            arguments["prior"] = "grid"
    given = {"norm": merge.norm, "scale": merge.scale, "prior": merge.prior}
    arguments |= {name: value for name, value in given.items() if value is not None}
    if merge.logit_std is not None:
        arguments["init"] = init_with_logit_std(merge.logit_std, arguments["scale"])
    return insert(model, **(arguments | where))


def _without_merger(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """What leaves the own merger of a model of the zoo out: the merge settings say what merges."""
    without = without_merger(name)
    merging = sorted({field.name for field in fields(MergeSettings)} & args.keys() - {"num_heads"})
    if without and merging:
        options = " and ".join(f"merge.{option}" for option in merging)
        raise ValueError(f"model.args ({args}) describe the merger of {name}: give {options} instead")
    return without
