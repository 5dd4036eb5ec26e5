"""timm's plain Vision Transformers (ViT, DeiT, DINOv2, CLIP, SigLIP and others) and CaiT, with mergers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from timm.models.cait import LayerScaleBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.common import PLAIN_BLOCKS, MergedTransformer, patch_grid, timm_blocks
from patchmerger.mechanism.blocks import is_merging


def describe_vision_transformer(model: Any) -> Host:
    """Describe a ``VisionTransformer``, or a distilled one."""
    varying = model.dynamic_img_size or not getattr(model.patch_embed, "strict_img_size", True)
    return Host(
        blocks=timm_blocks(model, PLAIN_BLOCKS, nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if varying else model.patch_embed.num_patches,
        prefix_is_needed=_why_prefix_is_needed(model, model.global_pool),
        grid=patch_grid(model, varies=varying),
        subclasses=[(model, MergedVisionTransformer)],
    )


def describe_cait(model: Any) -> Host:
    """CaiT says ``num_prefix_tokens = 1``, but its class token joins after these blocks: all they see is patches."""
    return Host(
        blocks=timm_blocks(model, (LayerScaleBlock,), nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=0,
        num_patches=model.patch_embed.num_patches,
        grid=patch_grid(model),
        subclasses=[(model, MergedTransformer)],
    )


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
        reason = _why_prefix_is_needed(cast(VisionTransformer, self), pool)
        if reason:
            raise ValueError(f"{argument} ({pool!r}) cannot follow a merger with prefix='merge': {reason}")


def _keeps_prefix(blocks: Iterable[nn.Module]) -> bool:
    """Whether no merger takes the prefix tokens."""
    return all(block.merge_state.num_kept_prefix_tokens > 0 for block in blocks if is_merging(block))


def _why_prefix_is_needed(model: VisionTransformer, pool: str) -> str | None:
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
