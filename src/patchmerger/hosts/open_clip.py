"""open_clip's own Vision Transformer, the image tower of its CLIP models; one of timm inside open_clip is timm's."""

from __future__ import annotations

from typing import Any

from torch import nn

from patchmerger.hosts.host import Host, refuse_unusual_blocks
from patchmerger.hosts.timm.common import MergedFeatures
from patchmerger.mechanism.subclassing import host_class


def describe_open_clip(model: Any) -> Host | None:
    """Describe open_clip's ``VisionTransformer``; ``None`` for its other classes, which may hold one."""
    from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer

    if host_class(model) is not VisionTransformer:
        return None
    blocks = list(model.transformer.resblocks)
    refuse_unusual_blocks(model, blocks, (ResidualAttentionBlock, CustomResidualAttentionBlock))
    rows, columns = model.grid_size
    drops = not isinstance(model.patch_dropout, nn.Identity)
    return Host(
        blocks=blocks,
        dim=model.transformer.width,
        num_prefix_tokens=1,
        num_patches=None if drops else rows * columns,
        prefix_is_needed="its pooling tells the class token from patches by its place",
        subclasses=[(model, MergedOpenClipTransformer)],
        grid=None if drops else (rows, columns),
        sequence_first=not getattr(model.transformer, "batch_first", False),  # older versions know no other
    )


class MergedOpenClipTransformer(MergedFeatures):
    """open_clip's ``VisionTransformer``."""

    transformer: Any

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return self.transformer.resblocks  # type: ignore[no-any-return]
