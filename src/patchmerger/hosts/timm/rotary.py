"""timm's Vision Transformers with rotary positions (EVA-02, DINOv3, Perception Encoders, RoPE ViTs), with mergers."""

from __future__ import annotations

import math
from typing import Any

from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.common import MergedTransformer, patch_grid, timm_blocks, why_prefix_stays
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.blocks import any_centroid
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.tracing import is_traced

# A step of half a turn (π) could be one forwards or one backwards; a little less, because tables are rounded.
_LONGEST_STEP = 3.1

DROPPED_PATCHES = "its patch_drop_rate leaves patches out, so that its rotary table is no grid; make it with 0"


def describe_eva(model: Any) -> Host:
    """Describe an ``Eva``, which has rotary positions or not."""
    return Host(
        blocks=timm_blocks(model, (EvaBlock, EvaBlockPostNorm), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if model.dynamic_img_size else model.patch_embed.num_patches,
        inputs=BlockInputs(rope=None if model.rope is None else Rope()),
        no_centroid=None if model.rope is None else _why_no_centroid(model),
        prefix_is_needed=why_prefix_stays(model),
        grid=patch_grid(model, varies=model.dynamic_img_size),
        subclasses=[(model, MergedTransformer if model.rope is None else MergedRotaryTransformer)],
    )


def _why_no_centroid(model: Any) -> str | None:
    if model.patch_drop is not None:
        return DROPPED_PATCHES
    return None if model.dynamic_img_size else too_long_a_step(model, model.patch_embed.grid_size)


def too_long_a_step(model: Any, grid: tuple[int, int]) -> str | None:
    """Why the centroids of merged tokens could not be found in images of ``grid`` patches; ``None`` if they can.

    Rotary tables that are stretched to a fixed extent turn the further from one patch to the next, the fewer they are.
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
        return super().forward_features(x, *args, **kwargs)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, where the centroids of merged tokens can be found."""
        self.check_steps(x)
        return super().forward_intermediates(x, *args, **kwargs)

    def check_steps(self, x: Tensor) -> None:
        """Refuse images with too few patches for the centroids of merged tokens."""
        if is_traced(x):
            return
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])  # type: ignore[operator]
        refuse_long_step(self, (height, width))


def refuse_long_step(model: Any, grid: tuple[int, int]) -> None:
    """Refuse images of ``grid`` patches where merged tokens need centroids which could not be found."""
    if not any_centroid(model.blocks):
        return
    reason = too_long_a_step(model, grid)
    if reason is not None:
        raise ValueError(f"merged tokens cannot have positions: {reason}, or insert with positions='drop'")
