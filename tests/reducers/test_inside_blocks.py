"""Reducers that work between attention and MLP, in the models of timm, transformers and torchvision."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from conftest import make_images, make_timm, make_vit
from hosts.tiny import make_model
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.attention import block_parts
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.reducers.reducer import Reducer
from patchmerger.reducers.tome import tome_schedule

pytestmark = pytest.mark.usefixtures("one_thread")

INSIDE = ("topk", "evit", "tome", "ats")
_ROTARY = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}


@dataclass(frozen=True)
class Family:
    """A kind of model, the side of its images and its patches."""

    size: int = 32
    patches: int = 16


FAMILIES = {
    "timm": Family(),
    "timm DINOv2": Family(),
    "timm DINOv3": Family(48, 36),
    "timm EVA-02": Family(56, 49),
    "transformers ViT": Family(),
    "transformers DINOv2": Family(),
    "transformers DINOv3": Family(40, 25),
    "transformers CLIP": Family(),
    "torchvision": Family(),
}


@cache
def _made(name: str) -> nn.Module:
    if name == "timm":
        return make_vit()
    if name == "timm DINOv2":
        return make_vit("registers, LayerScale")
    if name == "timm DINOv3":
        return make_timm("vit_small_patch16_dinov3", img_size=48, **_ROTARY)
    if name == "timm EVA-02":
        return make_timm("eva02_tiny_patch14_224", img_size=56, **_ROTARY)
    if name == "torchvision":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torchvision.models.VisionTransformer(32, 8, 4, 2, 32, 64, num_classes=5).eval()
            for parameter in model.parameters():
                parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
        return model
    classes = {"ViT": "ViTModel", "DINOv2": "Dinov2Model", "DINOv3": "DINOv3ViTModel", "CLIP": "CLIPVisionModel"}
    return make_model(classes[name.split()[1]])


def make(name: str) -> nn.Module:
    model = copy.deepcopy(_made(name))
    if name == "transformers DINOv2" and block_parts(find_host(model).blocks[0]) is None:
        pytest.skip("the attention of DINOv2 is of another form in this transformers, and refused by name")
    return model


def run(model: nn.Module, images: Tensor) -> Tensor:
    output: Any = model(images)
    return output if isinstance(output, Tensor) else output.last_hidden_state


def made_to_run(model: nn.Module) -> nn.Module:
    """The reducers run even where as many tokens arrive as go on, so that blocks run in two halves."""
    for module in model.modules():
        if isinstance(module, Reducer):
            module.keeps_all = False  # type: ignore[misc]
    return model


@pytest.mark.parametrize("method", INSIDE)
@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_tokens_it_is_the_plain_model(name, method):
    family = FAMILIES[name]
    images = make_images(size=family.size)
    with torch.no_grad():
        plain = run(make(name), images)
        merged = insert(make(name), [family.patches] * 2, [1, 4], reducer=method)
        assert torch.equal(run(merged, images), plain)
        torch.testing.assert_close(run(made_to_run(merged), images), plain, rtol=0, atol=2e-6)
        assert torch.equal(run(remove(merged), images), plain)


class Keeps(Reducer):
    """Notes what it is given, and keeps the first tokens."""

    needs = ("keys", "class_attention", "significance")
    inside_block = True
    found: dict[str, Tensor] = {}  # noqa: RUF012

    def forward(self, x: Tensor, *, return_weights: bool = False, **found: Tensor) -> Any:
        Keeps.found = {**found, "tokens": x}
        kept = x[:, : self.num_tokens]
        weights = torch.eye(self.num_tokens, x.shape[1]).expand(len(x), -1, -1)
        return (kept, weights) if return_weights else kept


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_reducer_is_given_is_what_attention_computes(name):
    """By torch's own attention: what is put into it, and its rows."""
    family, calls = FAMILIES[name], []
    model = make(name)
    attend = nn.functional.scaled_dot_product_attention
    images = make_images(size=family.size)
    insert(model, 5, 2, reducer=Keeps(5))

    def noted(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((query, key, value, kwargs.get("scale") or query.shape[-1] ** -0.5))
        return attend(query, key, value, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "scaled_dot_product_attention", noted)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        model.requires_grad_(requires_grad=True)
        with torch.enable_grad():  # torchvision's fused path is for inference
            run(model, images)
    query, key, value, scale = (x.double() if isinstance(x, Tensor) else x for x in calls[1])
    rows = (query @ key.transpose(2, 3) * scale).softmax(dim=-1)[:, :, 0, -family.patches :]  # (B, h, N)
    found = Keeps.found
    torch.testing.assert_close(found["class_attention"].double(), rows.mean(dim=1), rtol=1e-4, atol=1e-6)
    norms = value.norm(dim=-1)[:, :, -family.patches :]
    torch.testing.assert_close(found["significance"].double(), (rows * norms).sum(dim=1), rtol=1e-4, atol=1e-5)
    content = key.mean(dim=1)[:, -family.patches :]
    if "DINOv3" not in name and "EVA" not in name:
        torch.testing.assert_close(found["keys"].double(), content, rtol=1e-4, atol=1e-5)
    else:  # before they are rotated: another vector of the same length, head by head
        assert not torch.allclose(found["keys"].double(), content, atol=1e-2)
    assert found["tokens"].shape == (2, family.patches, 32)


@pytest.mark.parametrize("name", ["timm DINOv2", "timm DINOv3", "transformers DINOv2", "torchvision"])
def test_attention_after_tome_counts_merged_tokens_as_often_as_their_patches(name):
    """Merged tokens in a block with attention in proportion are as their copies in a plain block."""
    family, images = FAMILIES[name], make_images(size=FAMILIES[name].size)
    model = insert(make(name), 9, 1, reducer="tome", **({"positions": "drop"} if "DINOv3" in name else {}))
    blocks = [module for module in model.modules() if hasattr(module, "merge_state")]
    assert len(blocks) == 4
    seen: list[Any] = []
    with (
        blocks[1].register_forward_hook(
            lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
        ),
        torch.no_grad(),
    ):
        run(model, images)
    args, kwargs, output = seen[0]
    sizes = args[0].patchmerger_origin.sizes
    assert torch.equal(sizes.sum(dim=1), torch.full((2,), float(family.patches)))
    prefix = args[0].shape[1] - 9
    block = copy.deepcopy(blocks[1])
    block.__class__ = blocks[1].patchmerger_host_class
    rope = {key: None for key in kwargs if key == "rope"}
    for image in range(2):
        counts = torch.cat((torch.ones(prefix), sizes[image])).long()
        copies = args[0][image : image + 1].repeat_interleave(counts, dim=1)
        with torch.no_grad():
            expected = block(copies, **{**kwargs, **rope})
        first = counts.cumsum(dim=0) - counts
        torch.testing.assert_close(output[image], expected[0, first], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["timm", "timm DINOv3", "transformers DINOv2", "torchvision"])
def test_the_schedule_of_the_paper(name):
    family = FAMILIES[name]
    model = insert(make(name), **tome_schedule(family.patches, 4, r=3), reducer="tome")
    images = make_images(size=family.size)
    with torch.no_grad():
        assert run(model, images).isfinite().all()
    assert [m.num_tokens for m in mergers(model)] == [family.patches - 3 * step for step in range(1, 5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("timm DINOv2", "tome"), ("timm DINOv3", "evit"), ("transformers DINOv2", "tome"), ("torchvision", "topk")],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_copied_and_checkpointed(name, method):
    family = FAMILIES[name]
    images = make_images(size=family.size)
    plain = torch.compile(make(name), backend="aot_eager", fullgraph=True)
    model = insert(make(name), [9, 4], [1, 3], reducer=method)
    with torch.no_grad():
        run(plain, images)
        expected = run(model, images)
        compiled = run(torch.compile(model, backend="aot_eager", fullgraph=True), images)
        torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(run(copy.deepcopy(model), images), expected)
    if hasattr(model, "set_grad_checkpointing"):
        run(model.train(), images).square().sum().backward()
        before = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        model.set_grad_checkpointing()
        run(model, images).square().sum().backward()
        for key, gradient in before.items():
            torch.testing.assert_close(model.get_parameter(key).grad, gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [("timm DINOv2", "evit"), ("timm DINOv3", "tome"), ("transformers DINOv2", "topk"), ("torchvision", "tome")],
)
def test_exported(name, method):
    images = make_images(size=FAMILIES[name].size)
    model = insert(make(name), [9, 4], [1, 3], reducer=method)
    with torch.no_grad():
        exported = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(run(exported, images), run(model, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            "post-norm",
            r"reducer \('tome'\) works with the attention .* its ResPostBlocks do not add first an attention",
        ),
        ("parallel blocks", r"its ParallelScalingBlocks are of a kind whose attention is not known"),
        ("differential blocks", r"its DiffParallelScalingBlocks are of a kind whose attention is not known"),
    ],
)
def test_blocks_that_do_not_show_their_attention_are_refused(variant, message):
    model = make_vit(variant)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        insert(model, 4, reducer="tome")
    assert caught.value.kind == "attention"
    assert not mergers(model)


def test_a_class_token_is_needed():
    with pytest.raises(ValueError, match=r"reducer \('topk'\) needs a class token, and VisionTransformer has none"):
        insert(make_vit("average pooling"), 4, reducer="topk")
    with pytest.raises(ValueError, match=r"reducer \('evit'\) needs a class token"):
        insert(make_vit("registers, average pooling"), 4, reducer="evit")
    with pytest.raises(ValueError, match=r"reducer \('ats'\) needs a class token, and prefix='merge' would"):
        insert(make_vit("pooling with prefix", class_token=True), 4, reducer="ats", prefix="merge")
    insert(make_vit("average pooling"), 4, reducer="tome")


def test_an_attention_implementation_that_takes_no_bias():
    model = insert(make("transformers ViT"), 4, 1, reducer="tome")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"attn_implementation \('flash_attention_2'\) takes no bias"):
        run(model, make_images())
