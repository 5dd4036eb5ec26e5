"""FLOPs of one part of a Vision Transformer for one image: by formula where the part is known, else counted.

1 multiply-add = 2 FLOPs; only matrix products and convolutions count, as in ``torch.utils.flop_counter``.
N tokens, D features, A = heads · head width (the width of the attention).

- linear layer: ``2·N·in·out``
- patch embedding: ``2·P·(C·p²)·D`` for P patches of C channels and p × p pixels
- attention: ``4·N²·A``; differential attention ``6·N²·A`` where it is fused (two products with the values
  instead of one), ``4·N²·A`` where it is not
- block: ``2·N·Σ in·out`` over its linear layers, and its attention
- PatchMerger: ``4·P·M·D`` for P tokens merged into M
- latent attention pooling, L queries of width A: ``2·L·Σ in·out`` over q, proj and MLP, ``2·N·in·out`` for kv,
  and ``4·N·L·A``
- PRR attention pooling: ``4·N²·D``
"""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from timm.layers.diff_attention import DiffAttention
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.subclassing import Subclass, detach, host_class
from patchmerger.merger import PatchMerger

Source: TypeAlias = Literal["formula", "counted"]

_BLOCKS = (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)
_INNER = (Attention, DiffAttention, Mlp, GluMlp, SwiGLU, nn.Linear, nn.Sequential, nn.ModuleList)


class PartFlops(NamedTuple):
    """FLOPs of a part, the tokens that it gives, and whether a formula or the counter says so."""

    flops: int
    tokens: int
    source: Source


def embedding_flops(embed: nn.Module, image_size: tuple[int, int], grid: tuple[int, int], dim: int) -> PartFlops:
    """Patch embedding of one image; ``grid`` is what a plain ``PatchEmbed`` makes of it."""
    if type(embed) is PatchEmbed and type(embed.proj) is nn.Conv2d and _is_known(embed.norm):
        patches = grid[0] * grid[1]
        return PartFlops(2 * patches * embed.proj.weight.numel(), patches, "formula")
    clone = on_meta(embed)
    if tuple(getattr(clone, "img_size", image_size)) != image_size and hasattr(clone, "set_input_size"):
        clone.set_input_size(img_size=image_size)
    flops, output = _count(clone, (1, _channels(embed), *image_size), "patch_embed")
    if output.shape[-1] != dim:
        raise ValueError(f"patch_embed ({type(embed).__name__}) gives {tuple(output.shape)}, not tokens of {dim}")
    return PartFlops(flops, output.numel() // dim, "counted")


def block_flops(block: nn.Module, tokens: int, dim: int) -> PartFlops:
    """One transformer block on N tokens, without the merger that it may carry."""
    children = [child for name, child in block.named_children() if not (is_merging(block) and name == "merger")]
    if host_class(block) in _BLOCKS and "forward" not in vars(block) and all(map(_is_known, children)):
        inner = [block, *(module for child in children for module in child.modules())]
        linear = sum(module.weight.numel() for module in inner if type(module) is nn.Linear)
        return PartFlops(2 * tokens * linear + sum(_attention(m, tokens) for m in inner), tokens, "formula")
    clone = on_meta(block)
    if isinstance(clone, Subclass):
        detach(clone)
    if is_merging(block):
        del clone.merger
    return PartFlops(_count(clone, (1, tokens, dim), type(block).__name__)[0], tokens, "counted")


def merger_flops(merger: nn.Module, tokens: int, num_tokens: int, dim: int) -> PartFlops:
    """A merger, or any other reducer, from ``tokens`` to ``num_tokens``."""
    if type(merger) is PatchMerger and "forward" not in vars(merger):
        return PartFlops(4 * tokens * num_tokens * dim, num_tokens, "formula")
    flops, _ = _count(on_meta(merger), (1, tokens, dim), type(merger).__name__)
    return PartFlops(flops, num_tokens, "counted")


def pool_flops(pool: Any, tokens: int, dim: int) -> PartFlops:
    """Attention pooling over N tokens."""
    known = "forward" not in vars(pool) and all(map(_is_known, pool.children()))
    kind = type(pool)
    if known and kind is AttentionPoolPrr:
        return PartFlops(4 * tokens**2 * dim, 1, "formula")
    if known and kind is AttentionPoolLatent and pool.pos_embed is None:
        width, queries = pool.num_heads * pool.head_dim, pool.latent_len
        linear = sum(m.weight.numel() for m in pool.modules() if type(m) is nn.Linear and m is not pool.kv)
        flops = 2 * queries * linear + 2 * tokens * pool.kv.weight.numel() + 4 * tokens * queries * width
        return PartFlops(flops, 1 if pool.pool in ("token", "avg") else queries, "formula")
    flops, output = _count(on_meta(pool), (1, tokens, dim), type(pool).__name__)
    return PartFlops(flops, output.shape[1] if output.ndim == 3 else 1, "counted")


def head_flops(head: nn.Module, tokens: int, dim: int) -> PartFlops:
    """A classifier applied to each of ``tokens`` tokens."""
    if type(head) is nn.Linear and "forward" not in vars(head):
        return PartFlops(2 * tokens * head.weight.numel(), tokens, "formula")
    if type(head) is nn.Identity:
        return PartFlops(0, tokens, "formula")
    return PartFlops(_count(on_meta(head), (tokens, dim), type(head).__name__)[0], tokens, "counted")


def _attention(module: Any, tokens: int) -> int:
    kind = host_class(module)
    if kind is Attention:
        return 4 * tokens**2 * int(module.attn_dim)
    if kind is ParallelScalingBlock:
        return 4 * tokens**2 * int(module.num_heads) * int(module.head_dim)
    if kind in (DiffAttention, DiffParallelScalingBlock):
        # head_dim is that of one of the two queries: half the width that a head mixes.
        width = 2 * int(module.num_heads) * int(module.head_dim)
        return (6 if module.fused_attn else 4) * tokens**2 * width
    return 0


def _is_known(part: nn.Module) -> bool:
    """Whether the formulas hold for a module: known classes, and leaves without a matrix (norms, activations)."""

    def known(module: nn.Module) -> bool:
        if "forward" in vars(module):
            return False
        leaf = not any(True for _ in module.children())
        vectors_only = all(p.ndim < 2 for p in module.parameters(recurse=False))
        return type(module) in _INNER or (leaf and vectors_only)

    return all(known(module) for module in part.modules())


def _channels(embed: nn.Module) -> int:
    """Image channels: those of the first convolution."""
    if isinstance(channels := getattr(embed, "in_chans", None), int):
        return channels
    return next((m.in_channels for m in embed.modules() if isinstance(m, nn.Conv2d)), 3)


def on_meta(module: nn.Module) -> Any:
    """A copy on the meta device, in eval mode; no weight is copied."""
    tensors = [*module.parameters(), *module.buffers()]
    memo: dict[int, object] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo).eval()


def _count(module: nn.Module, shape: tuple[int, ...], name: str) -> tuple[int, Tensor]:
    """Run ``module``, which is on the meta device, once under torch's counter."""
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel escapes the counter
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = module(torch.empty(shape, dtype=dtype, device="meta"))
    except Exception as error:
        raise ValueError(
            f"no FLOP formula is known for {name} ({type(module).__name__}), and counting it on an input "
            f"of shape {shape} failed: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not isinstance(output, Tensor):
        raise ValueError(f"{name} ({type(module).__name__}) gives a {type(output).__name__} where a tensor is expected")
    return counter.get_total_flops(), output
