"""open_clip's own Vision Transformer takes a merger; in a CLIP model it is named, as is one of timm."""

import copy

import pytest
import torch
from torch import nn

open_clip = pytest.importorskip("open_clip", reason="an optional library")

from open_clip.transformer import VisionTransformer  # noqa: E402

from conftest import make_images  # noqa: E402
from patchmerger import UnsupportedModelError, cost, insert, mergers, remove  # noqa: E402
from patchmerger.census import check_host  # noqa: E402
from patchmerger.hosts.example_inputs import example_input  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "heads": 2, "mlp_ratio": 2.0, "output_dim": 8}
KINDS = {
    "class token": {},
    "average": {"pool_type": "avg", "final_ln_after_pool": True},
    "attention pooling": {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2},
    "LayerScale": {"ls_init_value": 0.5},
    "custom blocks": {"qk_norm": True, "scale_attn": True},
}


def make(kind: str = "class token", sequence_first: bool = False, **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(**{**SIZES, **KINDS[kind], **options}).eval()
    if sequence_first:  # as older versions have it
        model.transformer.batch_first = False
        for block in model.transformer.resblocks:
            block.attn.batch_first = False
    return model


def by_hand(model: nn.Module, images: torch.Tensor, after: int, merger: nn.Module) -> torch.Tensor:
    x = model._embeds(images)
    for number, block in enumerate(model.transformer.resblocks, start=1):
        x = block(x)
        if number == after:
            x = torch.cat((x[:, :1], merger(x[:, 1:])), dim=1)
    return model._pool(x)[0] @ model.proj


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_merged_output_equals_the_composition_by_hand(kind, sequence_first):
    images, plain, model = make_images(), make(kind), make(kind, sequence_first and kind != "custom blocks")
    insert(model, 5, after=3, prior=None)
    (found,) = mergers(model)
    assert (found.name, found.num_kept_prefix_tokens) == ("transformer.resblocks.2.merger", 1)
    assert (found.tokens_before, found.tokens_after) == (17, 6)
    torch.testing.assert_close(model(images), by_hand(plain, images, 3, found.module))
    assert [type(m) for m in remove(model).modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(model(images), plain(images))


@pytest.mark.parametrize("sequence_first", [False, True])
def test_located_queries_of_two_mergers_and_checkpointing(sequence_first):
    model = insert(make(sequence_first=sequence_first), (6, 4), (1, 2), prior="grid").train()
    images = make_images()
    model(images).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert any("prior.center" in name for name in expected)
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).square().sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_the_description_is_what_is_observed():
    check_host(make(), make_images())


def test_cost_and_example_input():
    model = insert(make(), 4)
    assert example_input(model).run(model).shape == (1, 8)
    assert cost(model).flops < cost(make()).flops


@torch.no_grad()
def test_features():
    model = insert(make(), 4, after=2)
    given = model.forward_intermediates(make_images(), output_fmt="NLC")["image_intermediates"]
    assert [x.shape[1] for x in given] == [16, 4, 4, 4]
    maps = model.forward_intermediates(make_images(), indices=[0], output_fmt="NCHW")["image_intermediates"]
    assert maps[0].shape[2:] == (4, 4)
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\).*block indices \[1, 2, 3\].*'NLC'"):
        model.forward_intermediates(make_images())


def test_weight_decay_spares_the_queries():
    assert "transformer.resblocks.1.merger.weight" in insert(make(), 4).no_weight_decay()


def test_prefix_and_patch_dropout():
    with pytest.raises(ValueError, match=r"prefix \('merge'\).*class token"):
        insert(make(), 4, prefix="merge")
    dropping = make(patch_dropout=0.5).train()
    assert insert(dropping, 4)(make_images()).shape[1] == 8
    assert mergers(dropping)[0].tokens_before is None
    with pytest.raises(ValueError, match="prior"):
        insert(make(patch_dropout=0.5), 4, prior="grid")


TEXT = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1)


def clip(trunk: str | None = None) -> nn.Module:
    if trunk is None:
        vision = open_clip.CLIPVisionCfg(layers=4, width=32, head_width=16, patch_size=8, image_size=32)
        return open_clip.CLIP(8, vision, TEXT).eval()
    vision = open_clip.CLIPVisionCfg(timm_model_name=trunk, timm_proj="linear", timm_pool="", image_size=160)
    return open_clip.CustomTextCLIP(8, vision, TEXT).eval()


@pytest.mark.parametrize(("trunk", "path"), [(None, "visual"), ("test_vit", "visual.trunk")])
def test_clip_names_its_image_tower(trunk, path):
    model = clip(trunk)
    with pytest.raises(UnsupportedModelError, match=f"pass model.{path}$") as error:
        insert(model, 4)
    assert error.value.inside == (path,)
    images = torch.randn(2, 3, *([32, 32] if trunk is None else [160, 160]))
    before = model.encode_text(torch.ones(2, 8, dtype=torch.long))
    insert(copy.deepcopy(model).get_submodule(path), 4)
    insert(model.get_submodule(path), 4)
    assert model.encode_image(images).shape == (2, 8)
    assert torch.equal(model.encode_text(torch.ones(2, 8, dtype=torch.long)), before)
