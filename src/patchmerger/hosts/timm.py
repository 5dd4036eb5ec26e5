"""timm's VisionTransformer: where its blocks are, its prefix tokens, and what of it counts on N tokens."""

from __future__ import annotations

from typing import Any, cast

from timm.models._features import feature_take_indices
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from patchmerger.hosts.host import Host, UnsupportedModelError, refuse_sharded, refuse_unusual_blocks
from patchmerger.merging_block import is_merging
from patchmerger.seams import Seam, host_class

_BLOCKS = (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)


def describe_timm(model: nn.Module) -> Host | None:
    """Describe a timm ``VisionTransformer``; ``None`` where ``model`` is of another class."""
    if type(model).__name__ == "FeatureGetterNet":
        raise UnsupportedModelError(model, "it only wraps the model for features", "insert into its .model")
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    if host_class(model) not in (VisionTransformer, VisionTransformerDistilled):
        return None
    assert isinstance(model, VisionTransformer)
    if not isinstance(model.blocks, nn.Sequential):
        raise UnsupportedModelError(
            model,
            f"its blocks are a {type(model.blocks).__name__}, not the nn.Sequential that timm makes",
            "insert before another tool (torch.compile, say) wraps the blocks",
        )
    blocks = list(model.blocks)
    refuse_sharded(model, blocks)
    refuse_unusual_blocks(model, blocks, _BLOCKS)
    varying = model.dynamic_img_size or not getattr(model.patch_embed, "strict_img_size", True)
    return Host(
        blocks=blocks,
        blocks_name="blocks",
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if varying else model.patch_embed.num_patches,
        prefix_is_needed=_why_prefix_is_needed(model, model.global_pool),
        root_seam=MergedVisionTransformer,
    )


def _why_prefix_is_needed(model: VisionTransformer, pool: str) -> str | None:
    if model.num_prefix_tokens == 0:
        return None
    if isinstance(model, VisionTransformerDistilled):
        return "its heads read the class and the distillation token"
    if pool == "token" or (pool == "prr" and model.has_class_token):
        return f"its pooling ({pool!r}) reads the class token"
    if pool and not model.pool_include_prefix:
        return f"its pooling ({pool!r}) strips the first {model.num_prefix_tokens} tokens off"
    return None


class MergedVisionTransformer(Seam):
    """The seam of the whole model: what counts on N tokens after a merge is mended or refused."""

    blocks: nn.Sequential
    num_prefix_tokens: int
    pool_include_prefix: bool

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As timm has it, for sequences (NLC); a feature map (NCHW) of merged tokens is refused."""
        taken, _ = feature_take_indices(len(self.blocks), indices)
        merging = {i: block for i, block in enumerate(self.blocks) if is_merging(block)}
        merged = sorted(i for i in taken if merging and i >= min(merging))
        if merged and output_fmt == "NCHW":
            raise ValueError(
                f"output_fmt ('NCHW') asks for feature maps of block indices {merged}, but tokens are merged after "
                f"block index {min(merging)} and have no place in a grid; ask for output_fmt='NLC', or take "
                f"indices below {min(merging)}"
            )
        prefix_merged = self.num_prefix_tokens and any(b.num_passing_tokens == 0 for b in merging.values())
        if merged and prefix_merged:
            raise ValueError(
                f"indices {merged} lie after a merge with prefix='merge': the prefix tokens that "
                "forward_intermediates would split off are merged; use prefix='keep'"
            )
        return super().forward_intermediates(  # type: ignore[misc]
            x, indices, return_prefix_tokens, norm, stop_early, output_fmt, *args, **kwargs
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
        if pool is None or all(block.num_passing_tokens > 0 for block in self.blocks if is_merging(block)):
            return
        reason = _why_prefix_is_needed(cast(VisionTransformer, self), pool)
        if reason:
            raise ValueError(f"{argument} ({pool!r}) cannot follow a merger with prefix='merge': {reason}")

    def no_weight_decay(self) -> set[str]:
        """What timm names, and the mergers' queries: decay would pull them towards average pooling."""
        names: set[str] = set(super().no_weight_decay())  # type: ignore[misc]
        queries = (f"blocks.{i}.merger.weight" for i, block in enumerate(self.blocks) if is_merging(block))
        return names | set(queries)
