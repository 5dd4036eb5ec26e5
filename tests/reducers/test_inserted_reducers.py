"""The methods that need the tokens alone, in models of timm and of transformers, and in one with rotary positions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images, make_vit
from hosts.merged_families import make_plain
from hosts.tiny import make_model
from patchmerger.costs import cost
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.reducers.names import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("tokenlearner", "sit", "sinkhorn", "kmedoids", "dpcknn", "atc", "fixed-l1", "fixed-l2", "fixed-linf", "random")
HOSTS = {
    "timm": make_vit,
    "transformers": lambda: make_model("Dinov2ForImageClassification"),
    "rope": lambda: make_plain("RoPE axial"),
}


def output(model: nn.Module, images: Tensor) -> Tensor:
    given = model(images)
    return given if isinstance(given, Tensor) else given.logits


def images_of(host: str) -> Tensor:
    return make_images(size=48 if host == "rope" else 32)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_keep_rate_1_is_the_plain_model(name, host):
    plain, images = HOSTS[host]().eval(), images_of(host)
    model = insert(copy.deepcopy(plain), 36 if host == "rope" else 16, [1, 2], reducer=name)
    if host == "rope":  # whose centroids are computed, from a weight of 1
        torch.testing.assert_close(output(model, images), output(plain, images))
    else:
        assert torch.equal(output(model, images), output(plain, images))


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", NAMES)
def test_runs_trains_and_goes_again(name, host):
    plain, images = HOSTS[host]().eval(), images_of(host)
    model = insert(copy.deepcopy(plain), [8, 4], after=[1, 3], reducer=name)
    assert [m.num_tokens for m in mergers(model)] == [8, 4]
    merged = output(model, images)
    assert merged.isfinite().all()
    assert not torch.allclose(merged, output(plain, images))
    torch.testing.assert_close(output(model, images[:1]), merged[:1])  # images do not see each other
    torch.manual_seed(0)
    output(model.train(), images).square().sum().backward()
    assert all(p.grad is not None for merger in mergers(model) for p in merger.module.parameters())
    assert torch.equal(output(remove(model).eval(), images), output(plain, images))


@pytest.mark.parametrize("name", ["sit", "atc"])
def test_cost_at_keep_rate_1_is_that_of_the_plain_model(name):
    plain = cost(make_vit()).flops
    found = cost(insert(make_vit(), 16, after=2, reducer=name))
    assert (found.plain_flops, found.flops, found.tokens_out) == (plain, plain, 17)


@pytest.mark.parametrize("name", NAMES)
def test_cost_counts_distances_and_scores(name):
    """2 FLOPs a multiply-add: 16 tokens of width 32 to 8."""
    model = insert(make_vit(), 8, after=2, reducer=name)
    part = next(part for part in cost(model).parts if part.name.endswith("merger"))
    mix, pairs = 2 * 8 * 16 * 32, 2 * 16 * 16 * 32
    expected = {
        "tokenlearner": 2 * 16 * (32 * 64 + 64 * 8) + mix,
        "sit": 2 * 16 * (32 * 16 + 16 * 8) + mix,
        "sinkhorn": 2 * 16 * 32 * 8 + mix,
        "kmedoids": pairs + 3 * 2 * 16 * 16 * 8,
        "dpcknn": pairs + 2 * 16 * 32 + mix,
        "atc": pairs + mix,
    }
    assert part.flops == expected.get(name, 0)
    assert (part.params > 0) == any(True for _ in model.blocks[1].merger.parameters())
    assert METHODS[name].learned == (name in ("tokenlearner", "sit", "sinkhorn"))


@pytest.mark.parametrize("first", ["patchmerger", "average", "dpcknn"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@torch.no_grad()
def test_tome_after_a_method_that_tells_no_sizes(first, order):
    images, model = make_images(), make_vit("class token")
    plain = copy.deepcopy(model)
    for step in order:
        if step == 0:
            insert(model, 12, 1, reducer=first, prior=None)
        else:
            insert(model, 6, 3, reducer="tome")
    found = model(images)
    front, tome = mergers(model)
    x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))
    for number, block in enumerate(plain.blocks, start=1):
        if number == 1:
            x = block(x)
            x = torch.cat((x[:, :1], front.module(x[:, 1:])), dim=1)
        elif number == 3:
            normed = block.norm1(x)
            qkv = block.attn.qkv(normed).unflatten(-1, (3, block.attn.num_heads, -1))
            keys = qkv[:, 1:, 1].mean(dim=2)  # (B, N, d), over heads
            x = x + block.attn(normed)
            rest, _, sizes = tome.module(x[:, 1:], keys=keys, return_sizes=True)
            x = torch.cat((x[:, :1], rest), dim=1)
            x = x + block.mlp(block.norm2(x))
        elif number == 4:
            bias = nn.functional.pad(sizes.log(), (1, 0))[:, None, None]
            x = x + block.attn(block.norm1(x), attn_mask=bias)
            x = x + block.mlp(block.norm2(x))
        else:
            x = block(x)
    torch.testing.assert_close(found, plain.forward_head(plain.norm(x)), atol=1e-4, rtol=1e-4)
    assert cost(model).flops < cost(plain).flops
