"""timm's plain Vision Transformers: where their blocks are, their prefix tokens, and what they give their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.cait import Cait, LayerScaleBlock
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from torch import nn

from patchmerger.block_inputs import BlockInputs
from patchmerger.hosts.host import Host, RelativeBias, UnsupportedModelError, refuse_unusual_blocks
from patchmerger.hosts.timm_seams import (
    MergedBiasedTransformer,
    MergedTransformer,
    MergedVisionTransformer,
    UnbiasedBeitAttention,
    UnbiasedRelPosAttention,
    why_prefix_is_needed,
)
from patchmerger.rotary import Rope
from patchmerger.seams import host_class

_PLAIN_BLOCKS = (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)


def describe_timm(model: nn.Module) -> Host | None:
    """Describe one of timm's models; ``None`` where its class is not known to be a plain Vision Transformer."""
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    describe = _FAMILIES.get(host_class(model))
    return None if describe is None else describe(model)


def _vision_transformer(model: Any) -> Host:
    varying = model.dynamic_img_size or not getattr(model.patch_embed, "strict_img_size", True)
    return Host(
        blocks=_blocks(model, _PLAIN_BLOCKS, nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if varying else model.patch_embed.num_patches,
        prefix_is_needed=why_prefix_is_needed(model, model.global_pool),
        seams=[(model, MergedVisionTransformer)],
    )


def _eva(model: Any) -> Host:
    """EVA, EVA-02, DINOv3, Perception Encoders and the RoPE ViTs."""
    dropped = "its patch_drop_rate leaves patches out, so that its rotary table is no grid; make it with 0"
    return Host(
        blocks=_blocks(model, (EvaBlock, EvaBlockPostNorm), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if model.dynamic_img_size else model.patch_embed.num_patches,
        inputs=BlockInputs(rope=None if model.rope is None else Rope()),
        no_centroid=None if model.patch_drop is None else dropped,
        prefix_is_needed=_prefix_stays(model),
        seams=[(model, MergedTransformer)],
    )


def _beit(model: Any) -> Host:
    # The first block keeps its bias table whatever is merged, so it tells whether there is one.
    own = model.blocks[0].attn.relative_position_bias_table is not None
    return Host(
        blocks=_blocks(model, (BeitBlock,), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=model.patch_embed.num_patches,
        inputs=BlockInputs(bias=None if model.rel_pos_bias is None else "shared_rel_pos_bias"),
        biases=(RelativeBias("attn", UnbiasedBeitAttention),) if own else (),
        prefix_is_needed=_prefix_stays(model),
        seams=[(model, MergedBiasedTransformer)],
    )


def _relpos(model: Any) -> Host:
    own = model.blocks[0].attn.rel_pos is not None
    return Host(
        blocks=_blocks(model, (RelPosBlock, ResPostRelPosBlock), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=model.patch_embed.num_patches,
        inputs=BlockInputs(bias=None if model.shared_rel_pos is None else "shared_rel_pos"),
        biases=(RelativeBias("attn", UnbiasedRelPosAttention),) if own else (),
        prefix_is_needed=_prefix_stays(model),
        seams=[(model, MergedBiasedTransformer)],
    )


def _cait(model: Any) -> Host:
    """CaiT says ``num_prefix_tokens = 1``, but its class token joins after these blocks: all they see is patches."""
    return Host(
        blocks=_blocks(model, (LayerScaleBlock,), nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=0,
        num_patches=model.patch_embed.num_patches,
        seams=[(model, MergedTransformer)],
    )


def _blocks(model: Any, known: tuple[type[nn.Module], ...], container: type[nn.Module]) -> list[nn.Module]:
    """The blocks, refused where another tool wrapped or exchanged them."""
    if not isinstance(model.blocks, nn.Sequential | nn.ModuleList):
        raise UnsupportedModelError(
            model,
            f"its blocks are a {type(model.blocks).__name__}, not the nn.{container.__name__} that timm makes",
            "insert before another tool (torch.compile, say) wraps the blocks",
            "changed",
        )
    blocks = list(model.blocks)
    refuse_unusual_blocks(model, blocks, known)
    return blocks


def _prefix_stays(model: Any) -> str | None:
    if model.num_prefix_tokens == 0:
        return None
    return f"{host_class(model).__name__} tells its first {model.num_prefix_tokens} tokens from patches by their place"


_FAMILIES: dict[type[nn.Module], Callable[[Any], Host]] = {
    VisionTransformer: _vision_transformer,
    VisionTransformerDistilled: _vision_transformer,
    Eva: _eva,
    Beit: _beit,
    VisionTransformerRelPos: _relpos,
    Cait: _cait,
}
