"""What timm's Vision Transformers have in common: a list of blocks, and prefix tokens before the patches."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn

from patchmerger.hosts.host import UnsupportedModelError, refuse_unusual_blocks
from patchmerger.mechanism.subclassing import host_class

# The blocks of VisionTransformer: they are given the tokens and, if anything, a mask.
PLAIN_BLOCKS = (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)


def known_blocks(model: Any, known: tuple[type[nn.Module], ...], container: type[nn.Module]) -> list[nn.Module]:
    """The blocks of ``model``, refused where another tool wrapped or exchanged them.

    Args:
        model: A timm model with ``blocks``.
        known: Classes of blocks that are known to run on any number of tokens.
        container: What timm keeps its blocks in.
    """
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


def why_prefix_stays(model: Any) -> str | None:
    """Why the prefix tokens of a model whose blocks or pooling count them must stay apart; ``None`` without any."""
    if model.num_prefix_tokens == 0:
        return None
    return f"{host_class(model).__name__} tells its first {model.num_prefix_tokens} tokens from patches by their place"
