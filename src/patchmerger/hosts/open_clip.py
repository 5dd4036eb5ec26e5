"""open_clip's own Vision Transformer, the image tower of its CLIP models; one of timm inside open_clip is timm's."""

from __future__ import annotations

from typing import Any

from torch import nn

from patchmerger.hosts.host import Host, refuse_unusual_blocks
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.subclassing import Subclass, host_class
from patchmerger.merger import PatchMerger


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


class MergedOpenClipTransformer(Subclass):
    """open_clip's ``VisionTransformer``: feature maps of merged tokens are refused."""

    transformer: Any

    def forward_intermediates(
        self, x: Any, indices: Any = None, stop_early: bool = False, normalize_intermediates: bool = False,
        intermediates_only: bool = False, output_fmt: str = "NCHW", output_extra_tokens: bool = False,
    ) -> Any:  # fmt: skip
        """As open_clip has it, for sequences (NLC); a feature map (NCHW) of merged tokens is refused."""
        from timm.models._features import feature_take_indices

        taken, _ = feature_take_indices(len(self.transformer.resblocks), indices)
        first = min(i for i, block in enumerate(self.transformer.resblocks) if is_merging(block))
        merged = sorted(i for i in taken if i >= first)
        if merged and output_fmt == "NCHW":
            raise ValueError(
                f"output_fmt ('NCHW') asks for feature maps of block indices {merged}, but tokens are merged after "
                f"block index {first} and have no place in a grid; ask for output_fmt='NLC', or take indices below "
                f"{first}"
            )
        return super().forward_intermediates(  # type: ignore[misc]
            x, indices, stop_early, normalize_intermediates, intermediates_only, output_fmt, output_extra_tokens
        )

    def no_weight_decay(self) -> set[str]:
        """What open_clip names, and what of the mergers decay would pull towards average pooling."""
        names: set[str] = set(super().no_weight_decay())  # type: ignore[misc]
        for number, block in enumerate(self.transformer.resblocks):
            if is_merging(block) and isinstance(block.merger, PatchMerger):
                path = f"transformer.resblocks.{number}.merger"
                names |= {f"{path}.{name}" for name in block.merger.no_weight_decay()}
        return names
