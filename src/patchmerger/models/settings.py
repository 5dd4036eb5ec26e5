"""Which model, and how it merges tokens, as settings: ModelSettings and MergeSettings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from patchmerger.mechanism.options import Norm, Positions, Prefix, Prior
from patchmerger.reducers.names import ReducerName, check_reducer_name
from patchmerger.runs.checks import check_choices, check_count, check_counts

Preset: TypeAlias = Literal["default", "paper", "vit-pytorch", "mean", "located", "scratch"]


@dataclass(frozen=True)
class MergeSettings:
    """Where tokens are merged, to how many, and how: what ``patchmerger.insert`` is given.

    Args:
        num_tokens: Tokens that go on (a list for several mergers).
        after: The block to merge after, counted from 1; half the depth if not given (a list for several).
        positions: What merged tokens are given in place of positions, for models whose blocks are given where tokens
            are: "centroid" (RoPE; its default) or "drop" (RoPE, relative position bias).
        prefix: Whether class and register tokens stay as they are ("keep") or are merged too ("merge").
        preset: A named setting of the queries: "scratch", "located", "default", "paper", "vit-pytorch" or "mean". If
            neither it nor one of the next four is given, "scratch" in a model without trained weights, in a trained one
            "located" where its patches have a known grid, else "default".
        norm: Where to normalise, in place of the preset's: "scores", "both" or "none".
        scale: Factor on the scores, in place of the preset's.
        logit_std: Standard deviation of the scores of normalised tokens at the start, in place of the preset's (1;
            "mean": 0.02). Near 0 each merged token starts as the average of all, from some 3 on mostly as one of them.
        prior: What located queries begin as, in place of the preset's: the tiles of a "grid", as the preset "located"
            has them, or "rows" across the image.
        num_heads: Groups of features that are merged each by its own queries, in place of the preset's: 4 of "scratch",
            else 1, as in the paper.
        reducer: The method: "patchmerger", or one of patchmerger.reducers.METHODS in its place, such as "tome", "topk",
            "evit", "random" or "average".
        keep_rate: In place of num_tokens the share of tokens that each merger keeps, such as 0.5.
    """

    num_tokens: int | list[int] = 8
    after: int | list[int] | None = None
    positions: Positions | None = None
    prefix: Prefix = "keep"
    preset: Preset | None = None
    norm: Norm | None = None
    scale: float | None = None
    logit_std: float | None = None
    prior: Prior | None = None
    num_heads: int | None = None
    reducer: ReducerName = "patchmerger"
    keep_rate: float | None = None

    def __post_init__(self) -> None:
        check_reducer_name(self.reducer, "merge.reducer")
        check_choices(self, "merge.")
        check_counts(self, "num_tokens", prefix="merge.", advice=", or a list of them; the paper uses 8")
        if self.after is not None:
            check_counts(self, "after", prefix="merge.", advice=", or a list of them; blocks are counted from 1")
        elif isinstance(self.num_tokens, Sequence):
            raise ValueError(f"merge.num_tokens ({self.num_tokens}) is a list: say after which blocks in merge.after")
        if self.keep_rate is not None:
            if self.num_tokens != 8:
                raise ValueError(
                    f"merge.num_tokens ({self.num_tokens}) and merge.keep_rate ({self.keep_rate:g}) both say how many "
                    "go on: give one of them"
                )
            if not 0 < self.keep_rate <= 1:
                raise ValueError(f"merge.keep_rate ({self.keep_rate:g}) must be above 0 and at most 1: 0.5, say")
        places, counts = self.places()
        if len(places) != len(counts) or len(set(places)) < len(places):
            raise ValueError(
                f"merge.after ({self.after}) must name as many different blocks as merge.num_tokens "
                f"({self.num_tokens}) has numbers"
            )
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(f"merge.scale ({self.scale}) must be finite and not 0: 1.0, say")
        if self.logit_std is not None and not (math.isfinite(self.logit_std) and self.logit_std > 0):
            raise ValueError(
                f"merge.logit_std ({self.logit_std}) must be above 0, as queries that start alike stay alike: 1.0, say"
            )
        if self.num_heads is not None:
            check_count("merge.num_heads", self.num_heads)
        # Runs of earlier versions have recorded the preset "default" beside every reducer.
        if self.reducer != "patchmerger" and (self.preset not in (None, "default") or self._changes_preset):
            raise ValueError(
                "merge.preset, merge.norm, merge.scale, merge.logit_std and merge.prior mean nothing with "
                f"merge.reducer={self.reducer!r}"
            )
        if self.reducer not in ("patchmerger", "average") and self.num_heads not in (None, 1):
            raise ValueError(
                f"merge.num_heads ({self.num_heads}) means nothing with merge.reducer={self.reducer!r}: leave it out"
            )

    @property
    def says_queries(self) -> bool:
        """Whether any option says what a PatchMerger's queries are; else ``patchmerger.insert`` chooses."""
        return self.preset is not None or self._changes_preset

    @property
    def _changes_preset(self) -> bool:
        return any(x is not None for x in (self.norm, self.scale, self.logit_std, self.prior))

    def from_scratch(self) -> MergeSettings:
        """The same for a model without trained weights: with the preset for that, where nothing says another."""
        free = self.reducer == "patchmerger" and not self.says_queries
        return replace(self, preset="scratch") if free else self

    def places(self) -> tuple[list[int | None], list[int]]:
        """The blocks to merge after, ``None`` for half the depth, and ``num_tokens`` for each."""
        places: list[int | None] = [*self.after] if isinstance(self.after, Sequence) else [self.after]
        counts = [*self.num_tokens] if isinstance(self.num_tokens, Sequence) else [self.num_tokens] * len(places)
        return places, counts


Merge: TypeAlias = MergeSettings | Literal["auto"] | None
"""A merger, ``None`` for the plain model, or ``"auto"``: the default merger, and a loaded model as it is."""


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
