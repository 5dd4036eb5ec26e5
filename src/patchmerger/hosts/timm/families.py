"""timm's plain Vision Transformers: where their blocks are, their prefix tokens, and what they give their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.cait import Cait, LayerScaleBlock
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from timm.models.vision_transformer import (
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from torch import nn

from patchmerger.hosts.host import Host, RelativeBias
from patchmerger.hosts.timm.blocks import PLAIN_BLOCKS, known_blocks, why_prefix_stays
from patchmerger.hosts.timm.encoders import describe_gemma4, describe_grid_encoder
from patchmerger.hosts.timm.naflex import describe_naflex
from patchmerger.hosts.timm.refusals import refuse
from patchmerger.hosts.timm.subclasses import (
    DROPPED_PATCHES,
    MergedBiasedTransformer,
    MergedRotaryTransformer,
    MergedTransformer,
    MergedVisionTransformer,
    UnbiasedBeitAttention,
    UnbiasedRelPosAttention,
    too_long_a_step,
    why_prefix_is_needed,
)
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.subclassing import host_class

# The blocks of VisionTransformer: they are given the tokens and, if anything, a mask.


def describe_timm(model: nn.Module) -> Host | None:
    """Describe one of timm's models.

    Returns:
        The description; ``None`` for a class that is not known.

    Raises:
        UnsupportedModelError: It is known that the model cannot take a merger.
    """
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    describe = _FAMILIES.get(host_class(model))
    if describe is None:
        refuse(model)
        return None
    return describe(model)


def _vision_transformer(model: Any) -> Host:
    varying = model.dynamic_img_size or not getattr(model.patch_embed, "strict_img_size", True)
    return Host(
        blocks=known_blocks(model, PLAIN_BLOCKS, nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if varying else model.patch_embed.num_patches,
        prefix_is_needed=why_prefix_is_needed(model, model.global_pool),
        subclasses=[(model, MergedVisionTransformer)],
    )


def _eva(model: Any) -> Host:
    """EVA, EVA-02, DINOv3, Perception Encoders and the RoPE ViTs."""
    return Host(
        blocks=known_blocks(model, (EvaBlock, EvaBlockPostNorm), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None if model.dynamic_img_size else model.patch_embed.num_patches,
        inputs=BlockInputs(rope=None if model.rope is None else Rope()),
        no_centroid=None if model.rope is None else _why_no_centroid(model),
        prefix_is_needed=why_prefix_stays(model),
        subclasses=[(model, MergedTransformer if model.rope is None else MergedRotaryTransformer)],
    )


def _why_no_centroid(model: Any) -> str | None:
    if model.patch_drop is not None:
        return DROPPED_PATCHES
    return None if model.dynamic_img_size else too_long_a_step(model, model.patch_embed.grid_size)


def _beit(model: Any) -> Host:
    # The first block keeps its bias table whatever is merged, so it tells whether there is one.
    own = model.blocks[0].attn.relative_position_bias_table is not None
    return Host(
        blocks=known_blocks(model, (BeitBlock,), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=model.patch_embed.num_patches,
        inputs=BlockInputs(bias=None if model.rel_pos_bias is None else "shared_rel_pos_bias"),
        biases=(RelativeBias("attn", UnbiasedBeitAttention),) if own else (),
        prefix_is_needed=why_prefix_stays(model),
        subclasses=[(model, MergedBiasedTransformer)],
    )


def _relpos(model: Any) -> Host:
    own = model.blocks[0].attn.rel_pos is not None
    return Host(
        blocks=known_blocks(model, (RelPosBlock, ResPostRelPosBlock), nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=model.patch_embed.num_patches,
        inputs=BlockInputs(bias=None if model.shared_rel_pos is None else "shared_rel_pos"),
        biases=(RelativeBias("attn", UnbiasedRelPosAttention),) if own else (),
        prefix_is_needed=why_prefix_stays(model),
        subclasses=[(model, MergedBiasedTransformer)],
    )


def _cait(model: Any) -> Host:
    """CaiT says ``num_prefix_tokens = 1``, but its class token joins after these blocks: all they see is patches."""
    return Host(
        blocks=known_blocks(model, (LayerScaleBlock,), nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=0,
        num_patches=model.patch_embed.num_patches,
        subclasses=[(model, MergedTransformer)],
    )


_FAMILIES: dict[type[nn.Module], Callable[[Any], Host]] = {
    VisionTransformer: _vision_transformer,
    VisionTransformerDistilled: _vision_transformer,
    Eva: _eva,
    Beit: _beit,
    VisionTransformerRelPos: _relpos,
    Cait: _cait,
    NaFlexVit: describe_naflex,
    Qwen3VitClassifier: describe_grid_encoder,
    Qwen3VitEncoder: describe_grid_encoder,
    DeepseekVitClassifier: describe_grid_encoder,
    DeepseekVitEncoder: describe_grid_encoder,
    Gemma4VitClassifier: describe_gemma4,
    Gemma4VitEncoder: describe_gemma4,
}
