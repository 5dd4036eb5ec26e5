"""Watching a model from outside, and giving weights to what stands before its blocks."""

import re

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images, make_vit
from hosts.own import MyViT
from patchmerger.census.observe import NotAsDescribedError, ObservedRun, constant_tokens, fill_stem, observe_run
from patchmerger.hosts.example_inputs import Example

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("variant", "prefix"), [("class token", 1), ("registers, LayerScale", 5), ("distilled", 2), ("average pooling", 0)]
)
def test_tokens_are_counted_and_told_apart(variant, prefix):
    model = make_vit(variant)
    example = Example(make_images(1))
    tokens = prefix + 16
    assert observe_run(model, model.blocks, example) == ObservedRun((tokens,) * 4, tokens, 16, ((1, 5),))
    assert constant_tokens(model, model.blocks, example) == [True] * prefix + [False] * 16


def test_nothing_is_left_behind():
    model = make_vit()
    observe_run(model, model.blocks, Example(make_images(1)))
    constant_tokens(model, model.blocks, Example(make_images(1)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_stem_gets_weights_and_the_blocks_none():
    with torch.device("meta"):
        model = make_vit("registers, LayerScale")
    fill_stem(model, model.blocks)
    assert all(p.is_meta for p in model.blocks.parameters())
    assert not any(p.is_meta for name, p in model.named_parameters() if not name.startswith("blocks."))
    again = make_vit("registers, LayerScale").to("meta")
    fill_stem(again, again.blocks)
    assert torch.equal(model.patch_embed.proj.weight, again.patch_embed.proj.weight)
    assert constant_tokens(model, model.blocks, Example(make_images(1))) == [True] * 5 + [False] * 16


def test_buffers_are_such_that_a_stem_runs():
    stem = nn.Module()
    stem.norm = nn.BatchNorm2d(3)
    stem.register_buffer("index", torch.arange(3))
    stem.to("meta")
    fill_stem(stem, [])
    assert stem.norm.running_var.tolist() == [1, 1, 1]
    assert stem.index.tolist() == [0, 0, 0]
    assert stem.norm.eval()(torch.randn(1, 3, 2, 2)).isfinite().all()


def test_patches_without_a_convolution():
    class Unfolded(MyViT):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 8 * 8, 32)

        def tokens(self, images: Tensor) -> Tensor:
            return self.embed(nn.functional.unfold(images, 8, stride=8).transpose(1, 2))

    model = Unfolded().eval()
    assert observe_run(model, model.layers, Example(make_images(1))).patches == 16


class Skipping(MyViT):
    def forward(self, images: Tensor) -> Tensor:
        return self.layers[3](self.layers[0](self.tokens(images)))


class Windows(MyViT):
    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)[:, 1:].unflatten(1, (4, 4)).flatten(0, 1)
        for layer in self.layers:
            x = layer(x)
        return x


class NoTokens(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "tokens"


class Said(MyViT):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([NoTokens()])

    def forward(self, images: Tensor) -> str:
        return self.layers[0](self.tokens(images))


def test_blocks_that_are_left_out():
    model = MyViT().eval()
    with pytest.raises(NotAsDescribedError, match=r"^layers\.2 runs too, a block like those of its description, which"):
        observe_run(model, model.layers[:2], Example(make_images(1)))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Skipping, "its 4 blocks should run one after another, each once, but those that ran are [1, 4]"),
        (Windows, "block 1 takes or gives (4, 4, 32), which should be (B, N, D) with B = 1"),
        (Said, "block 1 takes or gives no tensor, which should be (B, N, D) with B = 1"),
    ],
)
def test_blocks_that_are_no_chain_of_tokens(cls, message):
    model = cls().eval()
    with pytest.raises(NotAsDescribedError, match=re.escape(message)):
        observe_run(model, model.layers, Example(make_images(1)))


def test_a_first_block_that_gets_nothing():
    model = MyViT().eval()
    with pytest.raises(NotAsDescribedError, match="no tokens arrived at block 1"):
        constant_tokens(model, [nn.Identity()], Example(make_images(1)))
