"""What timm does with a merged model beside running it: features of blocks in the middle, other heads and sizes."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from conftest import SIZE, make_images, make_vit
from insertion_helpers import snapshot
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")


# Features of blocks in the middle


def test_features_come_as_sequences(variant, images):
    model = make_vit(variant)
    plain = copy.deepcopy(model)
    insert(model, 3)
    final, features = model.forward_intermediates(images, output_fmt="NLC")
    assert [tuple(f.shape) for f in features] == [(2, 16, 32), (2, 3, 32), (2, 3, 32), (2, 3, 32)]
    _, expected = plain.forward_intermediates(images, output_fmt="NLC")
    torch.testing.assert_close(features[0], expected[0])
    assert torch.equal(final, model.forward_features(images))
    (layer,) = model.get_intermediate_layers(images, n=1)
    assert torch.equal(layer, features[-1])


def test_prefix_tokens_of_features(images):
    model = insert(make_vit("registers, LayerScale"), 3)
    ((patches, prefix),) = model.get_intermediate_layers(images, n=1, return_prefix_tokens=True)
    assert (patches.shape, prefix.shape) == ((2, 3, 32), (2, 5, 32))


def test_feature_maps_end_at_the_merge(vit, images):
    insert(vit, 4, after=3)  # 4 = 2 × 2 tokens would fit a feature map, a wrong one
    _, maps = vit.forward_intermediates(images, indices=[0, 1])
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 4)] * 2
    for call in (
        lambda: vit.forward_intermediates(images),
        lambda: vit.forward_intermediates(images, [1, 2]),
        lambda: vit.get_intermediate_layers(images, 1, True),
    ):
        with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\).*merged after block index 2.*output_fmt='NLC'"):
            call()


def test_features_only_wrapper(images):
    net = timm.create_model("vit_small_patch16_224", features_only=True, out_indices=(0, 2), **SIZE).eval()
    with pytest.raises(UnsupportedModelError, match=r"it only wraps the model for features; pass its \.model"):
        insert(net, 4)
    insert(net.model, 4, after=1)
    with pytest.raises(ValueError, match=r"output_fmt \('NCHW'\) asks for feature maps of block indices \[0, 2\]"):
        net(images)
    remove(net.model)
    insert(net.model, 4, after=2)
    net.output_fmt = "NLC"
    assert [tuple(f.shape) for f in net(images)] == [(2, 16, 32), (2, 4, 32)]


def test_features_of_a_merged_prefix_are_refused(images):
    model = insert(make_vit("pooling with prefix"), 3, prefix="merge")
    with pytest.raises(ValueError, match=r"indices \[1, 2, 3\] lie after a merge with prefix='merge'"):
        model.forward_intermediates(images, output_fmt="NLC")
    assert len(model.forward_intermediates(images, [0], intermediates_only=True)) == 1


# What timm does with a model after it was made


def test_queries_have_no_weight_decay(vit):
    plain = vit.no_weight_decay()
    insert(vit, (8, 4), after=(1, 3), prior=None)
    assert vit.no_weight_decay() == plain | {"blocks.0.merger.weight", "blocks.2.merger.weight"}
    assert insert(vit, 6, 2, reducer="sinkhorn").no_weight_decay() - plain >= {"blocks.1.merger.center"}
    names = {id(p): name for name, p in vit.named_parameters()}
    skip = vit.no_weight_decay()
    for groups in (
        param_groups_layer_decay(vit, weight_decay=0.1, no_weight_decay_list=skip, layer_decay=0.5),
        param_groups_weight_decay(vit, weight_decay=0.1, no_weight_decay_list=skip),
    ):
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert "blocks.0.attn.qkv.weight" in decayed
        assert not any(".merger." in name for name in decayed)
    scales = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(vit, no_weight_decay_list=skip, layer_decay=0.5)
        for p in group["params"]
    }
    assert scales["blocks.2.merger.weight"] == scales["blocks.2.attn.qkv.weight"]


def test_reset_classifier(vit, images):
    insert(vit, 4).reset_classifier(7)
    assert vit(images).shape == (2, 7)
    vit.reset_classifier(3, global_pool="avg")
    assert vit(images).shape == (2, 3)
    assert len(mergers(vit)) == 1


def test_a_pooling_that_needs_the_merged_prefix_is_refused(images):
    model = make_vit(global_pool="")
    insert(model, 4, prefix="merge")
    with pytest.raises(ValueError, match=r"global_pool \('token'\) cannot follow a merger with prefix='merge'"):
        model.reset_classifier(3, global_pool="token")
    assert model.num_classes == 5
    with pytest.raises(ValueError, match=r"pool_type \('avg'\) cannot follow a merger with prefix='merge'"):
        model.pool(model.forward_features(images), pool_type="avg")
    assert insert(make_vit(), 4).pool(torch.ones(2, 5, 32), pool_type="avg").shape == (2, 32)


def test_set_input_size(vit):
    insert(vit, 4).set_input_size((64, 32))
    (found,) = mergers(vit)
    assert (found.tokens_before, found.tokens_after) == (33, 5)
    assert vit(make_images()[:, :, :, :32].repeat(1, 1, 2, 1)).shape == (2, 5)


def test_prune_intermediate_layers(vit, images):
    insert(vit, 4)
    expected = vit.forward_intermediates(images, [2], output_fmt="NLC", intermediates_only=True)
    assert vit.prune_intermediate_layers([2]) == [2]
    assert len(vit.blocks) == 3
    given = vit.forward_intermediates(images, [2], output_fmt="NLC", intermediates_only=True)
    assert torch.equal(given[0], expected[0])
    assert [found.after for found in mergers(vit)] == [2]


def test_remove_after_every_merging_block_was_cut_off(vit, images):
    pruned = copy.deepcopy(vit)
    pruned.prune_intermediate_layers([0])
    insert(vit, 4, after=3).prune_intermediate_layers([0])
    assert mergers(vit) == []
    assert remove(vit) is vit
    assert type(vit) is VisionTransformer
    assert snapshot(vit)[:2] == snapshot(pruned)[:2]
    assert torch.equal(vit.forward_features(images), pruned.forward_features(images))
    with pytest.raises(ValueError, match=r"model \(VisionTransformer\) has no merger to remove"):
        remove(vit)
