"""A model from settings: a timm ViT by name, with a merger or without."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import timm
from torch import nn

from patchmerger.costs.model_cost import cost
from patchmerger.hosts import find_host
from patchmerger.insertion import Prefix, insert
from patchmerger.mechanism.block_inputs import Positions
from patchmerger.merger import Norm, init_with_spread, preset
from patchmerger.reducers import AveragePool
from patchmerger.runs.run_folder import LATER
from patchmerger.zoo import without_merger


@dataclass(frozen=True)
class MergeSettings:
    """Where tokens are merged, to how many, and how: what ``patchmerger.insert`` is given.

    Args:
        num_tokens: Tokens that go on (a list for several mergers).
        after: The block to merge after, counted from 1; half the depth if not given (a list for several).
        positions: What merged tokens are given in place of positions, for models whose blocks are told where tokens
            are: "centroid" (RoPE; its default), "none" (RoPE), or "drop_bias" (relative position bias).
        prefix: Whether class and register tokens pass by the merger ("keep") or are merged too ("merge").
        preset: A named setting: "default", "paper", "vit-pytorch" or "mean".
        norm: Where to normalise, in place of the preset's: "scores", "both" or "none".
        scale: Factor on the scores, in place of the preset's.
        init_spread: Standard deviation of the scores of normalised tokens at the start, in place of the preset's (1;
            "mean": 0.02). Near 0 each merged token starts as the average of all, from some 3 on mostly as one of them.
        reducer: "patchmerger", or "average" for average pooling in its place.
    """

    num_tokens: int | list[int] = 8
    after: int | list[int] | None = None
    positions: Positions | None = None
    prefix: Prefix = "keep"
    preset: str = "default"
    norm: Norm | None = None
    scale: float | None = None
    init_spread: float | None = field(default=None, metadata=LATER)
    reducer: Literal["patchmerger", "average"] = "patchmerger"

    def apply(self, model: nn.Module) -> nn.Module:
        """Insert into ``model``, in place."""
        if self.reducer == "average":
            if (self.preset, self.norm, self.scale, self.init_spread) != ("default", None, None, None):
                raise ValueError(
                    "merge.preset, merge.norm, merge.scale and merge.init_spread mean nothing with "
                    "merge.reducer='average'"
                )
            counts = self.num_tokens if isinstance(self.num_tokens, list) else [self.num_tokens]
            places = self.after if isinstance(self.after, list) else [self.after]
            counts = counts * len(places) if len(counts) == 1 else counts
            pools = [AveragePool(count) for count in counts]
            return insert(
                model, self.num_tokens, self.after, prefix=self.prefix, positions=self.positions, reducer=pools
            )
        arguments = preset(self.preset, find_host(model).dim)
        given = {"norm": self.norm, "scale": self.scale}
        arguments |= {name: value for name, value in given.items() if value is not None}
        if self.init_spread is not None:
            arguments["init"] = init_with_spread(self.init_spread, arguments["scale"])
        return insert(model, self.num_tokens, self.after, prefix=self.prefix, positions=self.positions, **arguments)


@dataclass(frozen=True)
class ModelSettings:
    """A Vision Transformer of timm.

    Args:
        name: A timm architecture, such as "vit_small_patch16_224", or a size of patchmerger.zoo, where merge.… says
            what merges; "ARCHITECTURE.TAG" for given weights. If not given, a small ViT with 64 tokens (width 48,
            4 blocks, 2 heads, average pooling; for 32 pixels, or 64 where the images are larger).
        args: Arguments for timm.create_model, such as img_size, patch_size, embed_dim, depth, num_heads,
            drop_path_rate, class_token, global_pool.
        pretrained: Start from timm's weights instead of random ones.
    """

    name: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False

    def sized(self, image_size: int | None) -> ModelSettings:
        """The same model for images of ``image_size`` pixels, which is ``img_size`` in timm; as it is for ``None``."""
        if image_size is None:
            return self
        if image_size < 1:
            raise ValueError(f"image_size ({image_size}) must be at least one pixel")
        if self.args.get("img_size", image_size) != image_size:
            raise ValueError(f"image_size ({image_size}) and model.args ({self.args}) name two sizes: give one of them")
        return replace(self, args=self.args | {"img_size": image_size})

    def resolve(self, image_size: int) -> ModelSettings:
        """Fill in the default model where none is named, for images of ``image_size`` pixels."""
        if self.name is not None:
            return self
        size = 32 if image_size <= 32 else 64
        small: dict[str, Any] = {"img_size": size, "patch_size": size // 8, "embed_dim": 48, "depth": 4, "num_heads": 2}
        small |= {"class_token": False, "global_pool": "avg"}
        return replace(self, name="vit_tiny_patch16_224", args=small | self.args)


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
    return model if merge is None else merge.apply(model)


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


def shallow_twin(settings: ModelSettings, merged_flops: int, *, depth: int) -> ModelSettings:
    """The plain model with as many blocks as bring it closest to the merged model's FLOPs.

    The control for depth: a merger that is no better than leaving blocks out is worth nothing.

    Args:
        settings: The plain model.
        merged_flops: FLOPs of the merged model.
        depth: Blocks of the plain model.
    """

    def gap(blocks: int) -> int:
        return abs(cost(build_model(_with_depth(settings, blocks), num_classes=0)).flops - merged_flops)

    return _with_depth(settings, min(range(1, depth + 1), key=gap))


def _with_depth(settings: ModelSettings, depth: int) -> ModelSettings:
    return replace(settings, args=settings.args | {"depth": depth})
