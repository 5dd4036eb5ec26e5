"""torchvision's Vision Transformer: ``vit_b_16``, ``vit_b_32``, ``vit_l_16``, ``vit_l_32``, ``vit_h_14``."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from patchmerger.hosts.host import Host, UnsupportedModelError, known_blocks
from patchmerger.mechanism.subclassing import host_class


def describe_torchvision(model: nn.Module) -> Host | None:
    """Describe torchvision's ``VisionTransformer``; its other models are refused."""
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    if host_class(model) is VisionTransformer:
        return _vision_transformer(model)
    module = host_class(model).__module__
    if module.startswith("torchvision.models.") and module != VisionTransformer.__module__:
        raise UnsupportedModelError(
            model,
            "it is convolutional or hierarchical, no one sequence of tokens through one list of blocks",
            "of torchvision, vit_b_16 and the like can",
            "not one sequence",
        )
    return None


def _vision_transformer(model: Any) -> Host:
    return Host(
        blocks=known_blocks(model, model.encoder.layers, (EncoderBlock,), "torchvision", nn.Sequential),
        dim=model.hidden_dim,
        num_prefix_tokens=1,
        num_patches=model.seq_length - 1,
        grid=(model.image_size // model.patch_size,) * 2,
        prefix_is_needed="its head reads the class token",
    )
