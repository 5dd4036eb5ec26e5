"""What models cost: against formulas, against torch's counter on the whole model, and as it is shown."""

import copy
import json
import re

import pytest
import timm
import torch
from timm.layers import SwiGLU, SwiGLUPacked, set_fused_attn
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from costs.formulas import formula_flops
from patchmerger.costs.model_cost import cost
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove
from patchmerger.reducers import AveragePool
from patchmerger.runs.meta_device import meta_device

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}

VARIANTS = {
    "class token": {},
    "average pooling": {"global_pool": "avg", "class_token": False},
    "no pooling": {"global_pool": ""},
    "no head": {"num_classes": 0},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    "clip": {"pre_norm": True, "norm_layer": "layernorm", "act_layer": "quick_gelu"},
    "siglip": {"global_pool": "map", "class_token": False},
    "siglip with a class token": {"global_pool": "map"},
    "prr": {"global_pool": "prr"},
    "prr without a class token": {"global_pool": "prr", "class_token": False},
    "dinov2 giant": {"init_values": 1e-5, "mlp_layer": SwiGLUPacked, "mlp_ratio": 2.66667 * 2, "reg_tokens": 4},
    "swiglu": {"mlp_layer": SwiGLU, "mlp_ratio": 2.5, "scale_mlp_norm": True},
    "norms everywhere": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "differential": {"attn_layer": "diff"},
    "post norm": {"block_fn": ResPostBlock},
    "parallel scaling": {"block_fn": ParallelScalingBlock, "qkv_bias": False},
    "differential parallel": {"block_fn": DiffParallelScalingBlock},
    "parallel things": {"block_fn": ParallelThingsBlock},
    "no position embedding": {"pos_embed": "none"},
    "one channel": {"in_chans": 1},
    "wide": {"img_size": (16, 64)},
    "oblong patches": {"patch_size": (8, 4)},
}


def build(**options: object) -> VisionTransformer:
    with meta_device():
        return VisionTransformer(**{**TINY, **options}).eval()


def counted(model: nn.Module, image_size: int | tuple[int, int]) -> int:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    device = next(model.parameters()).device
    model.requires_grad_(False)  # the counter trips over views of parameters that need gradients
    # torch 2.8 does not count the fused attention of CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, model.in_chans, height, width, device=device))
    return counter.get_total_flops()


def num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check(model: nn.Module, *, formulas: bool = True) -> None:
    """Plain and merged: each part against its formula, all of them against a run of the whole model."""
    before = cost(model)
    assert before.flops == counted(model, model.patch_embed.img_size)
    assert before.params == num_params(model)
    assert before.plain_flops == before.flops
    assert before.speedup == 1
    insert(model, num_tokens=4, after=2)
    after = cost(model)
    assert after.flops < before.flops
    assert after.plain_flops == before.flops
    assert after.params == num_params(model)
    assert after.tokens_out == 4 + model.num_prefix_tokens < after.tokens == before.tokens
    if formulas:
        assert {part.name: part.flops for part in after.parts} == formula_flops(model)
        assert {part.name: part.flops for part in before.parts} == formula_flops(remove(model))


@pytest.mark.parametrize(
    ("name", "fused"),
    [(name, True) for name in VARIANTS]
    + [(name, False) for name in ("class token", "siglip", "prr", "differential", "differential parallel")],
)
def test_the_count_equals_the_formulas(name, fused):
    set_fused_attn(fused)
    try:
        check(build(**VARIANTS[name]))
    finally:
        set_fused_attn(True)


def test_vit_base():
    with meta_device():
        model = timm.create_model("vit_base_patch16_224").eval()
    assert cost(model).flops == 35_127_656_448
    merged = cost(insert(model, num_tokens=8, after=6))
    assert (merged.flops, merged.plain_flops) == (18_450_923_520, 35_127_656_448)
    assert {part.name: part.flops for part in merged.parts} == formula_flops(model)
    assert merged.speedup == pytest.approx(1.904, abs=5e-4)
    assert (merged.tokens, merged.tokens_out) == (197, 9)
    assert merged.block_tokens == (197,) * 6 + (9,) * 6


def test_distilled_has_two_heads():
    with meta_device():
        model = VisionTransformerDistilled(**TINY).eval()
    check(model)
    assert cost(model).parts[-1].flops == 2 * 2 * 32 * 10


def test_two_mergers_and_the_prefix_merged_too():
    model = build(global_pool="avg", class_token=True, pool_include_prefix=True)
    insert(model, num_tokens=(8, 2), after=(1, 3), prefix="merge")
    both = cost(model)
    assert both.flops == counted(model, 32)
    assert [(p.name, p.tokens_in, p.tokens_out) for p in both.parts if "merger" in p.name] == [
        ("blocks.0.merger", 17, 8),
        ("blocks.2.merger", 8, 2),
    ]
    assert [p.flops for p in both.parts if "merger" in p.name] == [4 * 17 * 8 * 32, 4 * 8 * 2 * 32]
    assert both.plain_flops == cost(remove(model)).flops


@pytest.mark.parametrize("options", [{}, {"global_pool": "map", "class_token": False}, {"no_embed_class": True}])
@pytest.mark.parametrize("image_size", [64, (16, 48)])
@pytest.mark.parametrize("merge", [False, True])
def test_another_image_size_is_as_if_it_were_set(options, image_size, merge):
    model = build(**options)
    if merge:
        insert(model, num_tokens=4)
    other = cost(model, image_size)
    assert cost(model).image_size == model.patch_embed.img_size == (32, 32)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    model.set_input_size(size)
    assert other == cost(model)
    assert other.flops == counted(model, image_size)
    assert other.params == num_params(model)


def test_dynamic_image_size():
    model = insert(build(dynamic_img_size=True), num_tokens=4)
    for image_size in (32, 64, (40, 16)):
        assert cost(model, image_size).flops == counted(model, image_size)
        assert cost(model, image_size).params == num_params(model)
    with pytest.raises(ValueError, match=re.escape("image_size (33, 32) does not divide by the patch size (8, 8)")):
        cost(model, (33, 32))


def test_dynamic_image_padding():
    model = insert(build(dynamic_img_size=True, dynamic_img_pad=True), num_tokens=4)
    assert cost(model, (33, 50)).flops == counted(model, (33, 50))
    fixed = build(dynamic_img_pad=True)
    with pytest.raises(ValueError, match=re.escape("does not divide by the patch size (8, 8)")):
        cost(fixed, 33)


def test_hybrid_at_another_image_size():
    with meta_device():
        model = timm.create_model("vit_tiny_r_s16_p8_224", depth=3).eval()
        larger = timm.create_model("vit_tiny_r_s16_p8_224", depth=3, img_size=320).eval()
    assert cost(model, 320).flops == cost(larger).flops == counted(larger, 320)
    assert cost(model, 320).params == num_params(larger)
    assert model.patch_embed.img_size == (224, 224)


def test_sizes_that_do_not_fit_are_refused():
    model = insert(build(), num_tokens=8)
    with pytest.raises(ValueError, match=re.escape("(30, 30) does not divide by the patch size (8, 8): take (32, 32)")):
        cost(model, 30)
    with pytest.raises(ValueError, match=re.escape("(5, 5) does not divide by the patch size (8, 8)")):
        cost(model, 5)
    with pytest.raises(
        ValueError, match=re.escape("brings 4 tokens to blocks.1.merger, fewer than the num_tokens (8)")
    ):
        cost(model, 16)
    with pytest.raises(ValueError, match=re.escape("image_size (0, 32) must be at least one pixel")):
        cost(model, (0, 32))


@pytest.mark.parametrize("part", ["embedding", "block", "pooling and head"])
def test_parts_of_unknown_make(part):
    model = build(global_pool="map")
    if part == "embedding":
        layers = nn.Conv2d(3, 8, 8, 8, device="meta"), nn.Conv2d(8, 32, 1, device="meta")
        model.patch_embed.proj = nn.Sequential(*layers)
    elif part == "block":
        model.blocks[1].mlp = nn.Sequential(nn.Linear(32, 7), nn.Linear(7, 32)).to("meta")
    else:
        model.head = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 10)).to("meta")
    check(model, formulas=False)


def test_a_patched_forward_is_what_runs():
    model = build()
    model.blocks[1].forward = lambda x: x
    assert cost(model).parts[2].flops == 0
    assert cost(model).flops == counted(model, 32)


def test_a_model_that_cannot_run_is_named():
    model = build()
    model.head = nn.Linear(16, 10, device="meta")
    with pytest.raises(ValueError, match=re.escape("counting VisionTransformer on an input of shape (1, 3, 32, 32)")):
        cost(model)


def test_hooks_and_checkpointing_of_the_user_do_not_run():
    model, plain = VisionTransformer(**TINY), cost(build())
    model.set_grad_checkpointing()
    seen = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append("hook"))
    model.blocks[0].register_forward_pre_hook(lambda *_: seen.append("pre-hook"))
    assert cost(model) == plain
    assert seen == []
    model(torch.zeros(1, 3, 32, 32))
    assert seen == ["pre-hook", "hook"]


def test_average_pooling_costs_no_flops():
    model = insert(build(), num_tokens=4, reducer=AveragePool(4))
    merger = next(p for p in cost(model).parts if "merger" in p.name)
    assert (merger.flops, merger.params) == (0, 0)
    assert cost(model).flops == counted(model, 32)


def test_a_model_with_weights_is_left_as_it_is():
    model = VisionTransformer(**TINY).train()
    model.patch_embed.proj = nn.Sequential(model.patch_embed.proj)
    insert(model, num_tokens=4)
    state = copy.deepcopy(model.state_dict())
    result = cost(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert result.flops == counted(model.eval(), 32)


def test_shared_parameters_count_once():
    model = build()
    model.blocks[1].mlp = model.blocks[0].mlp
    assert cost(model).params == num_params(model)
    assert cost(model).flops == counted(model, 32)


def test_as_dict_and_table():
    result = cost(insert(build(), num_tokens=4))
    record = json.loads(json.dumps(result.as_dict()))
    assert record["flops"] == sum(part["flops"] for part in record["parts"]) == result.flops
    assert record["image_size"] == [32, 32]
    assert record["speedup"] == result.speedup
    text = str(result)
    assert "blocks.0 … blocks.1 (2×)" in text
    assert "17 → 5" in text
    assert f"{result.speedup:.3f}× fewer FLOPs" in text
    assert "no merger" in str(cost(build()))


def test_unsupported_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="ResNet cannot take a merger"):
        cost(timm.create_model("resnet18", pretrained=False))


@pytest.mark.parametrize("family", ["CLIP", "Siglip", "Siglip2", "Aimv2", "AltCLIP", "Blip", "ChineseCLIP"])
def test_of_two_towers_that_of_the_images_alone(family):
    pytest.importorskip("transformers")
    from hosts.tiny import FAMILIES, insert_into, make_model

    whole, tower = f"{family}Model", f"{family}VisionModel"
    if not {whole, tower} <= set(FAMILIES):
        pytest.skip("not in this version of transformers")
    both, alone = (cost(insert_into(name, make_model(name), 3)) for name in (whole, tower))
    assert [(part.name.split(".")[-1], part.flops, part.params) for part in both.parts[1:-1]] == [
        (part.name.split(".")[-1], part.flops, part.params) for part in alone.parts[1:-1]
    ]
    # Beside the tower there is at most a projection, of 32 features to 16 or 32.
    assert both.flops - alone.flops in (0, 2 * 32 * 16, 2 * 32 * 32)
    assert 0 <= both.params - alone.params <= 33 * 32
