"""The named variants that a study trains, by settings only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from patchmerger.costs.counting import flops_of
from patchmerger.models.build import build_model
from patchmerger.models.settings import Merge, MergeSettings, ModelSettings
from patchmerger.reducers.names import METHODS, ReducerName
from patchmerger.runs.meta_device import meta_device
from patchmerger.studies.settings import Variants
from patchmerger.training.settings import Recipe

READY = {
    "plain": "the ViT as it is",
    "merged": "with the merger that the merge settings describe",
    "paper": "the same with the setting that the paper prints: values normalised too",
    "located": "the same with located queries: each looks at a place in the image first",
    **{name: f"{m.title} in the merger's place: {m.does}" for name, m in METHODS.items() if name != "patchmerger"},
    "shallow": "the plain ViT with fewer blocks, to the merged one's FLOPs: the control for depth",
}
"""The variants that need no more than their name."""


def resolve_variants(variants: Variants, recipe: Recipe, merge: MergeSettings) -> dict[str, Recipe]:
    """The recipe of each variant, by name, with everything checked by building it once, without weights.

    Args:
        variants: Names of ready-made variants, or names with what they change.
        recipe: Of the plain model, whose name must be given.
        merge: The merger of "merged", and the place of the others.

    Raises:
        ValueError: A variant that is not known or cannot be built.
    """
    chosen = variants if isinstance(variants, Mapping) else dict.fromkeys(variants)
    if len(chosen) < len(variants):
        raise ValueError(f"variants ({variants}) names one twice")
    if not chosen:
        raise ValueError("variants is empty: name at least one, such as plain and merged")
    recipes: dict[str, Recipe] = {}
    for name, own in chosen.items():
        if own is not None:
            model = replace(recipe.model, args=recipe.model.args | (own.model or {}))
            recipes[name] = replace(recipe, model=model, merge=own.merge)
        elif name in READY:
            model, merger = _ready(name, recipe.model, merge)
            recipes[name] = replace(recipe, model=model, merge=merger)
        else:
            raise ValueError(f"variants: {name!r} is not ready-made: choose from {', '.join(READY)}, or describe it")
        _build_bare(recipes[name].model, recipes[name].merge)
    return recipes


def build_recipe(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The model of a recipe that says whether it is merged."""
    return build_model(recipe.model, recipe.merge, num_classes=num_classes)


def _ready(name: str, model: ModelSettings, merge: MergeSettings) -> tuple[ModelSettings, MergeSettings | None]:
    if name == "plain":
        return model, None
    if name == "merged":
        return model, merge
    bare = replace(
        merge, preset="default", norm=None, scale=None, logit_std=None, prior=None, reducer="patchmerger"
    )  # fmt: skip
    if name == "paper":
        return model, replace(bare, preset="paper")
    if name == "located":
        return model, replace(bare, preset="located")
    if name in METHODS:
        return model, replace(bare, reducer=cast(ReducerName, name))
    merged = _build_bare(model, merge)
    return shallow_twin(model, flops_of(merged), depth=len(merged.blocks)), None  # type: ignore[arg-type]


def shallow_twin(settings: ModelSettings, merged_flops: int, *, depth: int) -> ModelSettings:
    """The plain model with as many blocks, of ``depth``, as bring it closest to the merged model's FLOPs.

    The control for depth: a merger that is no better than leaving blocks out is worth nothing.
    """

    def gap(blocks: int) -> int:
        return abs(flops_of(_build_bare(_with_depth(settings, blocks), None)) - merged_flops)

    return _with_depth(settings, min(range(1, depth + 1), key=gap))


def _with_depth(settings: ModelSettings, depth: int) -> ModelSettings:
    return replace(settings, args=settings.args | {"depth": depth})


def _build_bare(model: ModelSettings, merge: Merge) -> nn.Module:
    """A model without weights, to be looked at."""
    with meta_device():
        return build_model(replace(model, pretrained=False), merge, num_classes=0)
