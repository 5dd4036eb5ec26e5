"""The named variants that a study trains, by settings only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from torch import nn

from patchmerger.costs.counting import flops_of, on_meta
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings
from patchmerger.reducers.names import METHODS, ReducerName
from patchmerger.runs.meta_device import meta_device
from patchmerger.studies.methods import cut
from patchmerger.studies.settings import Variants
from patchmerger.training.finetuning import start_from
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
    """The recipe of each variant, by name, with everything checked by building it once.

    Args:
        variants: Names of ready-made variants, or names with what they change.
        recipe: Of the plain model, whose name must be given where it starts from nothing.
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
            recipes[name] = _ready(name, recipe, merge)
        else:
            raise ValueError(f"variants: {name!r} is not ready-made: choose from {', '.join(READY)}, or describe it")
        build_bare(recipes[name])
    return recipes


def build_recipe(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The model of a recipe that says whether it is merged, as its training begins."""
    if recipe.init is not None:
        return start_from(recipe.init, recipe.model, recipe.merge, class_names=("",) * num_classes).model
    return build_model(recipe.model, recipe.merge, num_classes=num_classes)


def build_bare(recipe: Recipe, *, num_classes: int = 0) -> nn.Module:
    """The same to be looked at: without weights, but for what starts from trained ones."""
    with nullcontext() if recipe.init is not None else meta_device():
        return build_recipe(replace(recipe, model=replace(recipe.model, pretrained=False)), num_classes=num_classes)


def _ready(name: str, recipe: Recipe, merge: MergeSettings) -> Recipe:
    if name == "plain":
        return replace(recipe, merge=None)
    if name == "merged":
        return replace(recipe, merge=merge)
    bare = replace(
        merge, preset=None, norm=None, scale=None, logit_std=None, prior=None, num_heads=None, reducer="patchmerger"
    )  # fmt: skip
    if name == "paper":
        return replace(recipe, merge=replace(bare, preset="paper"))
    if name == "located":
        return replace(recipe, merge=replace(bare, preset="located"))
    if name in METHODS:
        return replace(recipe, merge=replace(bare, reducer=cast(ReducerName, name)))
    return shallow_twin(recipe, flops_of(build_bare(replace(recipe, merge=merge))))


def shallow_twin(recipe: Recipe, merged_flops: int) -> Recipe:
    """The plain model with as many of its first blocks as bring it closest to the merged model's FLOPs.

    The control for depth: a merger that is no better than leaving blocks out is worth nothing.
    """
    plain: Any = on_meta(build_bare(replace(recipe, merge=None)))
    depth = min(range(1, len(plain.blocks) + 1), key=lambda blocks: abs(flops_of(cut(plain, blocks)) - merged_flops))
    return replace(recipe, model=replace(recipe.model, args=recipe.model.args | {"depth": depth}), merge=None)
