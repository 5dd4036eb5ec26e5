"""Few tokens in bf16 on a CPU are trained by torch's plain attention; all else runs as ever."""

import pytest
import timm
import torch
import torch.nn.functional as F

from patchmerger.training.attention import short_attention


def operands(tokens, dtype=torch.bfloat16, trained=True):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, tokens, 16, generator=generator) for _ in range(3)]
    return [part.to(dtype).requires_grad_(trained) for part in parts]


def kernel(*given, **named):
    return F.scaled_dot_product_attention(*given, **named).grad_fn.name()


@pytest.mark.parametrize(
    ("tokens", "dtype", "fused"),
    [(9, torch.bfloat16, False), (100, torch.bfloat16, False), (101, torch.bfloat16, True), (9, torch.float32, True)],
)
def test_which_kernel_trains(tokens, dtype, fused):
    assert "Flash" in kernel(*operands(tokens, dtype))
    with short_attention():
        assert ("Flash" in kernel(*operands(tokens, dtype))) == fused
    assert "Flash" in kernel(*operands(tokens, dtype)), "elsewhere torch chooses"


def test_autocast_and_names_count():
    query, key, value = operands(9, torch.float32)
    with short_attention(), torch.autocast("cpu", torch.bfloat16):
        assert "Flash" not in kernel(query=query, key=key, value=value)
    with short_attention(), torch.no_grad():
        fast = F.scaled_dot_product_attention(*operands(9))
    assert torch.equal(fast, F.scaled_dot_product_attention(*operands(9)).detach()), "no gradient: the fused kernel"


def test_gradients_are_those_of_the_fused_kernel():
    found = []
    for context in (torch.enable_grad(), short_attention()):
        parts = operands(20)
        with context:
            F.scaled_dot_product_attention(*parts).square().sum().backward()
        found.append([part.grad.float() for part in parts])
    for fused, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, fused, atol=0.05, rtol=0.05)


def test_checkpointed_blocks_train_within():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3, num_classes=4)
    model.set_grad_checkpointing()
    with short_attention():
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(2, 3, 32, 32)).square().sum()
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
