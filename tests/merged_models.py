"""Tiny merged models, and what a step of training makes of them."""

import torch
from torch import Tensor, nn

from conftest import make_images, make_timm, make_vit
from patchmerger.insertion import insert

VARIANT = "registers, LayerScale"


def make_plain() -> nn.Module:
    return make_vit(VARIANT, depth=3, embed_dim=16)


def make_merged() -> nn.Module:
    return merge(make_plain())


def merge(model: nn.Module, num_tokens: int | tuple[int, ...] = 4, after: int | tuple[int, ...] = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(model, num_tokens, after)


# One table for all blocks and a class token; one for each block and head, and no prefix.
ROPE = {
    "axial": ("vit_small_patch16_rope_224", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {"class_token": False, "global_pool": "avg"}),
}


def make_rotary(kind: str) -> nn.Module:
    """A model whose blocks are told where merged tokens come from, over two merges."""
    architecture, arguments = ROPE[kind]
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return merge(make_timm(architecture, **sizes, **arguments), (9, 4), (1, 2))


def assert_same_classes(first: nn.Module, second: nn.Module) -> None:
    assert [type(m) for m in first.modules()] == [type(m) for m in second.modules()]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and gradients of one training step's forward and backward."""
    model.zero_grad()
    outputs = model(images)
    outputs.square().mean().backward()
    return outputs.detach(), gradients(model)


def two_forwards(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a backward pass after two forward passes, of batches of two sizes."""
    first, second = make_images(2), make_images(5).flip(0)[:3]
    model.train().zero_grad()
    outputs = model(first), model(second)
    (outputs[0].square().sum() + outputs[1].square().sum()).backward()
    return gradients(model)
