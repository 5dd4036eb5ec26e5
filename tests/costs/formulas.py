"""FLOPs of the parts of timm's Vision Transformers by formula: what the count is held against.

1 multiply-add = 2 FLOPs; N tokens, D features, A = heads · head width (the width of the attention).

- linear layer: 2·N·in·out
- patch embedding: 2·P·(C·p²)·D for P patches of C channels and p × p pixels
- attention: 4·N²·A; differential attention 6·N²·A where it is fused (two products with the values instead of one)
- block: 2·N·Σ in·out over its linear layers, and its attention
- PatchMerger: 4·P·M·D for P tokens merged into M
- latent attention pooling, L queries: 2·L·Σ in·out over q, proj and MLP, 2·N·in·out for kv, and 4·N·L·A
- PRR attention pooling: 4·N²·D
"""

from timm.layers.attention import Attention
from timm.layers.attention_pool import AttentionPoolPrr
from timm.layers.diff_attention import DiffAttention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock, VisionTransformer
from torch import nn

from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.subclassing import host_class


def formula_flops(model: VisionTransformer) -> dict[str, int]:
    """FLOPs of one image of the model's own size, by part as ``cost`` names them."""
    patches, dim = model.patch_embed.num_patches, model.embed_dim
    flops = {"patch_embed": 2 * patches * model.patch_embed.proj.weight.numel()}
    tokens = patches + model.num_prefix_tokens
    inserted = {merger.after: merger for merger in mergers(model)}
    for index, block in enumerate(model.blocks):
        flops[f"blocks.{index}"] = block_flops(block, tokens)
        if merger := inserted.get(index + 1):
            kept = merger.num_kept_prefix_tokens
            flops[merger.name] = 4 * (tokens - kept) * merger.num_tokens * dim
            tokens = kept + merger.num_tokens
    flops["head"] = ending_flops(model, tokens)
    return flops


def block_flops(block: nn.Module, tokens: int) -> int:
    parts = [module for name, module in block.named_modules() if name.split(".")[0] != "merger"]
    linear = sum(module.weight.numel() for module in parts if isinstance(module, nn.Linear))
    return 2 * tokens * linear + sum(attention_flops(module, tokens) for module in parts)


def attention_flops(module: nn.Module, tokens: int) -> int:
    kind = host_class(module)
    if kind is Attention:
        return 4 * tokens**2 * module.attn_dim
    if kind is ParallelScalingBlock:
        return 4 * tokens**2 * module.num_heads * module.head_dim
    if kind in (DiffAttention, DiffParallelScalingBlock):  # head_dim is half the width that a head mixes
        return (6 if module.fused_attn else 4) * tokens**2 * 2 * module.num_heads * module.head_dim
    return 0


def ending_flops(model: VisionTransformer, tokens: int) -> int:
    """Pooling and head."""
    pool, flops = model.attn_pool, 0
    outputs = tokens if model.global_pool == "" else 1
    if pool is not None:
        pooled = tokens if model.pool_include_prefix else tokens - model.num_prefix_tokens
        if isinstance(pool, AttentionPoolPrr):
            flops += 4 * pooled**2 * model.embed_dim
        else:
            linear = sum(m.weight.numel() for m in pool.modules() if isinstance(m, nn.Linear) and m is not pool.kv)
            flops += 2 * pool.latent_len * linear + 2 * pooled * pool.kv.weight.numel()
            flops += 4 * pooled * pool.latent_len * pool.num_heads * pool.head_dim
    heads = [model.head, model.head_dist] if isinstance(model, VisionTransformerDistilled) else [model.head]
    return flops + sum(2 * outputs * head.weight.numel() for head in heads if isinstance(head, nn.Linear))
