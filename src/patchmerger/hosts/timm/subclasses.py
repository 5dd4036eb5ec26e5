"""timm's models with a merger, besides their blocks: what counts on N tokens after a merge is mended or refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchmerger.mechanism.blocks import any_centroid, is_merging
from patchmerger.mechanism.subclassing import Subclass, attach, detach, mixin_of, subclassed_modules
from patchmerger.merger import PatchMerger


class MergedTransformer(Subclass):
    """Any timm model with a list of ``blocks``."""

    blocks: nn.Sequential | nn.ModuleList

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, for sequences (NLC); a feature map (NCHW) of merged tokens is refused."""
        self.taken_features(self.named_arguments(args, kwargs))
        return super().forward_intermediates(x, *args, **kwargs)  # type: ignore[misc]

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``forward_intermediates`` after the image, by name."""
        host: Any = self.patchmerger_host_class
        code = host.forward_intermediates.__code__
        return {**dict(zip(code.co_varnames[2 : code.co_argcount], args, strict=False)), **kwargs}

    def taken_features(self, given: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Block indices whose features ``forward_intermediates`` gives, and those of them that are merged.

        Args:
            given: Its arguments, by name.

        Raises:
            ValueError: It cannot give them.
        """
        taken, _ = feature_take_indices(len(self.blocks), given.get("indices"))
        merging = [i for i, block in enumerate(self.blocks) if is_merging(block)]
        merged = sorted(i for i in taken if merging and i >= merging[0])
        if merged and given.get("output_fmt", "NCHW") == "NCHW":
            raise ValueError(
                f"output_fmt ('NCHW') asks for feature maps of block indices {merged}, but tokens are merged after "
                f"block index {merging[0]} and have no place in a grid; ask for output_fmt='NLC', or take "
                f"indices below {merging[0]}"
            )
        self.check_intermediates(merged)
        return sorted(taken), merged

    def check_intermediates(self, merged: list[int]) -> None:
        """Refuse features of the ``merged`` block indices that this model cannot give."""

    def no_weight_decay(self) -> set[str]:
        """What timm names, and the mergers' queries: decay would pull them towards average pooling."""
        names: set[str] = set(super().no_weight_decay())  # type: ignore[misc]
        modules = cast(nn.Module, self).named_modules()
        return names | {f"{name}.weight" for name, module in modules if isinstance(module, PatchMerger)}


def any_merging(blocks: Iterable[nn.Module]) -> bool:
    """Whether tokens are merged after one of ``blocks``; those that merge can be cut off a model."""
    return any(is_merging(block) for block in blocks)


def _keeps_prefix(blocks: Iterable[nn.Module]) -> bool:
    """Whether no merger takes the prefix tokens."""
    return all(block.merge_state.num_kept_prefix_tokens > 0 for block in blocks if is_merging(block))


class MergedVisionTransformer(MergedTransformer):
    """``VisionTransformer``, whose prefix tokens may have been merged too."""

    num_prefix_tokens: int
    pool_include_prefix: bool

    def check_intermediates(self, merged: list[int]) -> None:
        """A merged prefix cannot be split off."""
        prefix_merged = self.num_prefix_tokens and not _keeps_prefix(self.blocks)
        if merged and prefix_merged:
            raise ValueError(
                f"indices {merged} lie after a merge with prefix='merge': the prefix tokens that "
                "forward_intermediates would split off are merged; use prefix='keep'"
            )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As timm has it; a pooling that reads or strips prefix tokens which were merged is refused."""
        self._refuse_pool("global_pool", global_pool)
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """As timm has it; a pooling that reads or strips prefix tokens which were merged is refused."""
        self._refuse_pool("pool_type", pool_type)
        return super().pool(x, pool_type)  # type: ignore[misc, no-any-return]

    def _refuse_pool(self, argument: str, pool: str | None) -> None:
        if pool is None or _keeps_prefix(self.blocks):
            return
        reason = why_prefix_is_needed(cast(VisionTransformer, self), pool)
        if reason:
            raise ValueError(f"{argument} ({pool!r}) cannot follow a merger with prefix='merge': {reason}")


def why_prefix_is_needed(model: VisionTransformer, pool: str) -> str | None:
    """Why a ``VisionTransformer`` with this pooling needs its prefix tokens apart, or ``None``."""
    if model.num_prefix_tokens == 0:
        return None
    if isinstance(model, VisionTransformerDistilled):
        return "its heads read the class and the distillation token"
    if pool == "token" or (pool == "prr" and model.has_class_token):
        return f"its pooling ({pool!r}) reads the class token"
    if pool and not model.pool_include_prefix:
        return f"its pooling ({pool!r}) strips the first {model.num_prefix_tokens} tokens off"
    return None


class MergedBiasedTransformer(MergedTransformer):
    """Models with a relative position bias, whose tables follow the image size."""

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """As timm has it, also for the tables that blocks after the merge keep but do not use."""
        unbiased = [m for m in subclassed_modules(cast(nn.Module, self)) if isinstance(m, Unbiased)]
        mixins = [mixin_of(module) for module in unbiased]
        detach(*cast(list[nn.Module], unbiased))
        try:
            super().set_input_size(*args, **kwargs)  # type: ignore[misc]
        finally:
            for module, mixin in zip(unbiased, mixins, strict=True):
                attach(module, mixin)


class Unbiased(Subclass):
    """An attention that adds no relative position bias; its table stays, so that state dicts do not change."""


class UnbiasedBeitAttention(Unbiased):
    """BEiT's attention: what its class says of the table hides the parameter of that name."""

    relative_position_bias_table = None


class UnbiasedRelPosAttention(Unbiased):
    """The attention of timm's relative-position ViTs: what its class says of the bias hides the module."""

    rel_pos = None


# A step of half a turn (π) could be one forwards or one backwards; a little less, because tables are rounded.
_LONGEST_STEP = 3.1

DROPPED_PATCHES = "its patch_drop_rate leaves patches out, so that its rotary table is no grid; make it with 0"


def too_long_a_step(model: Any, grid: tuple[int, int]) -> str | None:
    """Why the centroids of merged tokens could not be found in images of ``grid`` patches; ``None`` if they can.

    Rotary tables that are stretched to a fixed extent turn the further from one patch to the next, the fewer they are.

    Args:
        model: A model with ``rope``, in training or not.
        grid: Rows and columns of patches.
    """
    rope = model.rope
    if isinstance(rope, RotaryEmbeddingDinoV3):
        extent = (4 * math.pi, 4 * math.pi)  # radians from one end to the other, in the band that turns fastest
    else:
        extent = getattr(rope, "ref_feat_shape", None) or grid
    stretch = (rope.jitter_coords or 1) * (rope.rescale_coords or 1) if model.training else 1
    if all(size == 1 or stretch * length / size < _LONGEST_STEP for length, size in zip(extent, grid, strict=True)):
        return None
    return (
        f"with {grid[0]} × {grid[1]} patches its rotary positions turn by more than half a turn from one patch to the "
        "next; take larger images"
    )


class MergedRotaryTransformer(MergedTransformer):
    """Models whose rotary table may be stretched over the grid of patches."""

    patch_embed: nn.Module

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, where the centroids of merged tokens can be found."""
        self.check_steps(x)
        return super().forward_features(x, *args, **kwargs)  # type: ignore[misc]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, where the centroids of merged tokens can be found."""
        self.check_steps(x)
        return super().forward_intermediates(x, *args, **kwargs)

    def check_steps(self, x: Tensor) -> None:
        """Refuse images with too few patches for the centroids of merged tokens."""
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])  # type: ignore[operator]
        refuse_long_step(self, (height, width))


def refuse_long_step(model: Any, grid: tuple[int, int]) -> None:
    """Refuse images of ``grid`` patches where merged tokens need centroids which could not be found.

    Raises:
        ValueError: They could not.
    """
    if not any_centroid(model.blocks):
        return
    reason = too_long_a_step(model, grid)
    if reason is not None:
        raise ValueError(f"merged tokens cannot have positions: {reason}, or insert with positions='drop'")
