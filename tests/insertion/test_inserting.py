"""What insert puts into a model, and remove takes out again."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from conftest import NUM_PATCHES, make_images, make_vit
from insertion_helpers import Strided, snapshot
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.merger import PatchMerger
from patchmerger.presets import preset
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand(model: nn.Module, images: Tensor, places: dict[int, nn.Module], passing: int) -> Tensor:
    """The forward pass of a merged model, from the parts of a plain one."""
    x = model.patch_embed(images)
    x = model.norm_pre(model.patch_drop(model._pos_embed(x)))
    for number, block in enumerate(model.blocks, start=1):
        x = block(x)
        if number in places:
            x = torch.cat((x[:, :passing], places[number](x[:, passing:])), dim=1)
    return model.forward_head(model.norm(x))


def test_merged_output_equals_the_composition_by_hand(variant, images):
    model = make_vit(variant)
    plain = copy.deepcopy(model)
    assert insert(model, num_tokens=3, after=2, prior=None) is model
    (found,) = mergers(model)
    expected = by_hand(plain, images, {2: found.module}, plain.num_prefix_tokens)
    assert torch.equal(model(images), expected)
    assert not torch.allclose(expected, plain(images), atol=1e-3)


def test_several_mergers_equal_the_composition_by_hand(variant, images):
    model = make_vit(variant)
    plain = copy.deepcopy(model)
    insert(model, num_tokens=(3, 7), after=(3, 1), prior=None)
    places = {found.after: found.module for found in mergers(model)}
    assert {place: module.num_tokens for place, module in places.items()} == {1: 7, 3: 3}
    assert torch.equal(model(images), by_hand(plain, images, places, plain.num_prefix_tokens))


def test_merged_prefix_equals_the_composition_by_hand(images):
    model = make_vit("pooling with prefix")
    plain = copy.deepcopy(model)
    insert(model, 3, prefix="merge")
    (found,) = mergers(model)
    assert (found.num_kept_prefix_tokens, found.tokens_before, found.tokens_after) == (0, 4 + NUM_PATCHES, 3)
    assert torch.equal(model(images), by_hand(plain, images, {2: found.module}, passing=0))


def test_one_hot_weights_change_nothing(variant):
    image = make_images(1)
    model = make_vit(variant)
    expected = model(image)
    (arriving,) = model.forward_intermediates(image, [1], output_fmt="NLC", intermediates_only=True)
    # The queries W = (X⁺)ᵀ give W Xᵀ = I: each of the 16 tokens scores for itself alone.
    queries = torch.linalg.pinv(arriving[0].detach().double()).T
    insert(model, NUM_PATCHES, norm="none", scale=1e4, init=queries)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.blocks[1].merger.weight.zero_()
    assert not torch.allclose(model(image), expected, atol=1e-3)


def test_default_is_half_way_and_eight_tokens(vit):
    (found,) = mergers(insert(vit))
    assert (found.name, found.after, found.num_tokens, found.num_kept_prefix_tokens) == ("blocks.1.merger", 2, 8, 1)
    assert (found.tokens_before, found.tokens_after) == (17, 9)
    assert found.module is vit.blocks[1].merger


def test_mergers_of_a_plain_model(vit):
    assert mergers(vit) == []


def test_mergers_in_a_row():
    model = make_vit("registers, LayerScale")
    insert(model, 4, after=3)
    insert(model, 9, after=1, norm="both", scale=0.5)
    first, second = mergers(model)
    assert (first.after, first.tokens_before, first.tokens_after) == (1, 21, 14)
    assert (second.after, second.tokens_before, second.tokens_after) == (3, 14, 9)
    assert (first.module.norm_mode, first.module.scale) == ("both", 0.5)
    assert (second.module.norm_mode, second.module.scale) == ("scores", 1.0)


def test_the_number_of_tokens_is_open_where_image_sizes_are():
    model = make_vit(dynamic_img_size=True)
    (found,) = mergers(insert(model, 200))
    assert found.tokens_before is None
    assert found.tokens_after == 201
    assert model(make_images(size=48)).shape == (2, 5)


def test_only_new_keys_contain_merger(variant):
    model = make_vit(variant)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = insert(model, (8, 4), after=(1, 3), prior=None).state_dict()
    new = after.keys() - before.keys()
    assert new == {f"blocks.{i}.merger.{name}" for i in (0, 2) for name in ("weight", "norm.weight", "norm.bias")}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_remove_puts_back_the_very_model(variant, images):
    model = make_vit(variant)
    expected, before = model(images), snapshot(model)
    insert(model, 4)
    insert(model, 2, after=3)
    assert snapshot(model) != before
    assert remove(model) is model
    assert snapshot(model) == before
    assert torch.equal(model(images), expected)
    with pytest.raises(ValueError, match=re.escape(f"model ({type(model).__name__}) has no merger to remove")):
        remove(model)


def test_remove_is_all_or_nothing(vit):
    insert(vit, (4, 2), after=(1, 3))
    vit.blocks[2].__class__ = type("Other", (type(vit.blocks[2]),), {})
    before = snapshot(vit)
    with pytest.raises(TypeError, match="the class of Other was changed after patchmerger changed it"):
        remove(vit)
    assert snapshot(vit) == before


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merger_is_where_its_block_is(device, dtype):
    model = make_vit().to(device=device, dtype=dtype)
    insert(model, 4)
    parameters = dict(model.blocks[1].merger.named_parameters())
    assert len(parameters) == 6
    assert {(p.device.type, p.dtype) for p in parameters.values()} == {(device, dtype)}
    assert model(make_images().to(device=device, dtype=dtype)).shape == (2, 5)


def test_training_mode_follows_the_block(vit):
    assert not insert(vit, 4).blocks[1].merger.training
    vit.train()
    assert insert(vit, 2, after=3).blocks[2].merger.training


def test_a_merger_in_a_frozen_model_can_be_trained(vit, images):
    insert(vit.requires_grad_(False), 4)
    vit(images).sum().backward()
    assert {name for name, p in vit.named_parameters() if p.grad is not None} == {
        f"blocks.1.merger.{name}"
        for name in ("weight", "norm.weight", "norm.bias", "prior.center", "prior.log_width", "gain")
    }


def test_init_norm_and_scale_reach_the_merger(vit):
    weight = torch.randn(4, 32)
    insert(vit, 4, norm="none", scale=0.5, init=weight)
    merger = vit.blocks[1].merger
    assert (merger.norm_mode, merger.scale) == ("none", 0.5)
    assert torch.equal(merger.weight, weight)
    paper = insert(make_vit(), 4, **preset("paper", dim=32)).blocks[1].merger
    assert (paper.norm_mode, paper.scale) == ("both", 1.0)


def test_reducers(vit, images):
    plain = copy.deepcopy(vit)
    pool, strided = AveragePool(8), Strided(2)
    insert(vit.double(), (8, 4), after=(1, 2), reducer=[pool, strided])
    assert [found.module for found in mergers(vit)] == [pool, strided]
    assert strided.gain.dtype == torch.float64
    places = {1: lambda x: x.unflatten(1, (8, 2)).mean(2), 2: lambda x: x[:, ::2]}
    expected = by_hand(plain.double(), images.double(), places, passing=1)
    torch.testing.assert_close(vit(images.double()), expected)


def test_prefix_merge_without_a_prefix_or_a_pooling(images):
    assert insert(make_vit("average pooling"), 4, prefix="merge")(images).shape == (2, 5)
    model = make_vit(global_pool="", num_classes=0)
    assert insert(model, 4, prefix="merge")(images).shape == (2, 4, 32)


def test_a_forward_that_is_the_one_of_its_class_is_no_change(vit, images):
    expected = vit(images)
    vit.blocks[1].forward = vit.blocks[1].forward  # so transformers 5.0 leaves it after it has recorded outputs
    insert(vit, 4)
    assert "forward" not in vars(vit.blocks[1])
    merged = vit(images)
    vit.blocks[1].forward = vit.blocks[1].forward
    assert torch.equal(copy.deepcopy(vit)(images), merged)
    assert torch.equal(remove(vit)(images), expected)


@torch.no_grad()
def test_a_block_compiled_in_place_can_merge(vit, images):
    plain = copy.deepcopy(vit)
    vit.blocks[1].compile(backend="eager")
    vit(images)
    (found,) = mergers(insert(vit, 4, prior=None))
    assert torch.equal(vit(images), by_hand(plain, images, {2: found.module}, passing=1))


def test_a_patch_merger_can_be_given_as_reducer(vit, images):
    merger = PatchMerger(32, 4)
    insert(vit, 4, reducer=merger)
    assert mergers(vit)[0].module is merger
    assert vit(images).shape == (2, 5)


def test_a_share_is_of_what_arrives_behind_mergers_that_are_there():
    model = insert(make_vit(), after=1, keep_rate=0.5)
    insert(model, after=(2, 3), keep_rate=0.5)
    assert [(found.after, found.num_tokens) for found in mergers(model)] == [(1, 8), (2, 4), (3, 2)]
    again = insert(make_vit(), after=1, keep_rate=0.75)
    assert [found.num_tokens for found in mergers(insert(again, keep_rate=0.5))] == [12, 6]
    whole = insert(make_vit(), after=(1, 2, 3), keep_rate=0.7)
    assert [found.num_tokens for found in mergers(whole)] == [int(16 * 0.7**i) for i in (1, 2, 3)]
