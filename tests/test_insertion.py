import copy
import pickle
import re
from functools import partial

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from conftest import NUM_PATCHES, SIZE, make_images, make_vit
from patchmerger.hosts import UnsupportedModelError
from patchmerger.inserted import mergers
from patchmerger.insertion import insert, remove
from patchmerger.merger import PatchMerger, preset
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")


def snapshot(model: nn.Module) -> tuple:
    """All that a refused insert must leave as it was."""
    classes = [(name, type(module)) for name, module in model.named_modules()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return classes, attributes, {name: id(tensor) for name, tensor in model.named_parameters()}


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
    assert insert(model, num_tokens=3, after=2) is model
    (found,) = mergers(model)
    expected = by_hand(plain, images, {2: found.module}, plain.num_prefix_tokens)
    assert torch.equal(model(images), expected)
    assert not torch.allclose(expected, plain(images), atol=1e-3)


def test_several_mergers_equal_the_composition_by_hand(variant, images):
    model = make_vit(variant)
    plain = copy.deepcopy(model)
    insert(model, num_tokens=(3, 7), after=(3, 1))
    places = {found.after: found.module for found in mergers(model)}
    assert {place: module.num_tokens for place, module in places.items()} == {1: 7, 3: 3}
    assert torch.equal(model(images), by_hand(plain, images, places, plain.num_prefix_tokens))


def test_merged_prefix_equals_the_composition_by_hand(images):
    model = make_vit("pooling with prefix")
    plain = copy.deepcopy(model)
    insert(model, 3, prefix="merge")
    (found,) = mergers(model)
    assert (found.num_passing_tokens, found.tokens_before, found.tokens_after) == (0, 4 + NUM_PATCHES, 3)
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
    assert (found.name, found.after, found.num_tokens, found.num_passing_tokens) == ("blocks.1.merger", 2, 8, 1)
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
    after = insert(model, (8, 4), after=(1, 3)).state_dict()
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
    with pytest.raises(TypeError, match="the class of Other was changed after the merger was put in"):
        remove(vit)
    assert snapshot(vit) == before


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merger_is_where_its_block_is(device, dtype):
    model = make_vit().to(device=device, dtype=dtype)
    insert(model, 4)
    parameters = dict(model.blocks[1].merger.named_parameters())
    assert len(parameters) == 3
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
        "blocks.1.merger.weight",
        "blocks.1.merger.norm.weight",
        "blocks.1.merger.norm.bias",
    }


def test_init_norm_and_scale_reach_the_merger(vit):
    weight = torch.randn(4, 32)
    insert(vit, 4, norm="none", scale=0.5, init=weight)
    merger = vit.blocks[1].merger
    assert (merger.norm_mode, merger.scale) == ("none", 0.5)
    assert torch.equal(merger.weight, weight)
    paper = insert(make_vit(), 4, **preset("paper", dim=32)).blocks[1].merger
    assert (paper.norm_mode, paper.scale) == ("both", 1.0)


class Strided(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :: self.step] * self.gain


def test_reducers(vit, images):
    plain = copy.deepcopy(vit)
    pool, strided = AveragePool(8), Strided(2)
    insert(vit.double(), (8, 4), after=(1, 2), reducer=[pool, strided])
    assert [found.module for found in mergers(vit)] == [pool, strided]
    assert strided.gain.dtype == torch.float64
    places = {1: lambda x: x.unflatten(1, (8, 2)).mean(2), 2: lambda x: x[:, ::2]}
    expected = by_hand(plain.double(), images.double(), places, passing=1)
    torch.testing.assert_close(vit(images.double()), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reducer": Strided(2)}, r"reducer \(Strided\) gives \(1, 8, 32\) for 16 tokens of width 32, but num_tokens "),
        ({"reducer": nn.LSTM(32, 32)}, r"reducer \(LSTM\) gives tuple for 16 tokens"),
        ({"reducer": AveragePool(4), "scale": 2.0}, "norm, scale and init are PatchMerger's"),
        ({"reducer": AveragePool(4), "init": torch.ones(4, 32)}, "norm, scale and init are PatchMerger's"),
        ({"reducer": [AveragePool(4)] * 2, "after": (1, 2)}, "one module for each of the 2 places, none of them twice"),
        ({"reducer": AveragePool(4), "after": (1, 2)}, "one module for each of the 2 places"),
        ({"after": 0}, r"after \(0\) must be a block from 1 to 3: the model has 4 blocks, counted from 1"),
        ({"after": 4}, r"after \(4\) must be a block from 1 to 3"),
        ({"after": -1}, r"after \(-1\) must be a block from 1 to 3"),
        ({"after": 1.5}, r"after \(1.5\) must be a block from 1 to 3"),
        ({"after": (1, 1)}, r"after \(\[1, 1\]\) names a block twice"),
        ({"after": ()}, r"after \(\[\]\) and num_tokens \(\[\]\) must be equally long and not empty"),
        ({"after": (1, 2), "num_tokens": (4,)}, r"after \(\[1, 2\]\) and num_tokens \(\[4\]\) must be equally long"),
        ({"num_tokens": (4, 2)}, r"num_tokens \(\[4, 2\]\) is a sequence: say after which blocks in `after`"),
        ({"num_tokens": 0}, r"num_tokens \(0\) must be a whole number of at least 1; the paper uses 8"),
        ({"num_tokens": 2.5}, r"num_tokens \(2.5\) must be a whole number"),
        ({"num_tokens": 17}, r"num_tokens \(17\) after block 2 is more than the 16 tokens that arrive"),
        ({"num_tokens": (4, 5), "after": (1, 2)}, r"num_tokens \(5\) after block 2 is more than the 4 tokens"),
        ({"prefix": "drop"}, r"prefix \('drop'\) must be 'keep' or 'merge'"),
        ({"norm": "batch"}, r"norm \('batch'\) must be one of"),
        ({"init": torch.ones(3, 32)}, r"init has shape \(3, 32\), but W is \(num_tokens, dim\) = \(4, 32\)"),
    ],
)
def test_refused_options_change_nothing(vit, options, message):
    before = snapshot(vit)
    with pytest.raises(ValueError, match=message):
        insert(vit, **{"num_tokens": 4, **options})
    assert snapshot(vit) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"after": 2}, r"after \(2\): there is a merger already; remove\(model\) takes it out"),
        ({"after": (1, 2)}, r"after \(2\): there is a merger already"),
        ({"after": 3, "num_tokens": 5}, r"num_tokens \(5\) after block 3 is more than the 4 tokens that arrive"),
        ({"after": 1, "num_tokens": 3}, r"num_tokens \(4\) after block 2 is more than the 3 tokens that arrive"),
    ],
)
def test_refused_beside_a_merger(vit, options, message):
    insert(vit, 4)
    before = snapshot(vit)
    with pytest.raises(ValueError, match=message):
        insert(vit, **{"num_tokens": 4, **options})
    assert snapshot(vit) == before


def test_one_way_with_the_prefix_in_one_model():
    model = insert(make_vit("pooling with prefix"), 4, prefix="merge")
    with pytest.raises(ValueError, match=r"prefix \('keep'\) must be the same as that of blocks.1.merger"):
        insert(model, 2, after=3)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("class token", r"its pooling \('token'\) reads the class token; use 'keep'"),
        ("distilled", "its heads read the class and the distillation token"),
        ("registers, average pooling", r"its pooling \('avg'\) strips the first 4 tokens off"),
    ],
)
def test_prefix_that_is_needed_is_not_merged(variant, message):
    model = make_vit(variant)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        insert(model, 4, prefix="merge")
    assert snapshot(model) == before


def test_prefix_merge_without_a_prefix_or_a_pooling(images):
    assert insert(make_vit("average pooling"), 4, prefix="merge")(images).shape == (2, 5)
    model = make_vit(global_pool="", num_classes=0)
    assert insert(model, 4, prefix="merge")(images).shape == (2, 4, 32)


class MyVisionTransformer(VisionTransformer):
    pass


class MyBlock(Block):
    pass


def test_subclasses_are_refused():
    model = MyVisionTransformer(depth=2, embed_dim=16, num_heads=2)
    with pytest.raises(UnsupportedModelError, match=r"^MyVisionTransformer cannot take a merger"):
        insert(model)
    model = VisionTransformer(depth=2, embed_dim=16, num_heads=2, block_fn=MyBlock)
    with pytest.raises(UnsupportedModelError, match="block 1 is a MyBlock, not known to run on any number of tokens"):
        insert(model)


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        insert("vit_tiny_patch16_224")


def test_one_block_is_not_enough():
    with pytest.raises(ValueError, match="the model has 1 block: a merger needs a block before and a block after it"):
        insert(make_vit(depth=1))


def patched_forward(model: nn.Module) -> nn.Module:
    model.blocks[1].forward = partial(model.blocks[1].forward)
    return model


def shared_block(model: nn.Module) -> nn.Module:
    model.blocks[3] = model.blocks[0]
    return model


def compiled_block(model: nn.Module) -> nn.Module:
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    return model


def compiled_blocks(model: nn.Module) -> nn.Module:
    model.blocks = torch.compile(model.blocks, backend="eager")
    return model


def merger_attribute(model: nn.Module) -> nn.Module:
    model.blocks[1].merger = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (patched_forward, "block 2 has a forward of its own in its __dict__"),
        (shared_block, "a block stands in it more than once"),
        (compiled_block, "block 2 is wrapped by torch.compile, which would hide the merger"),
        (compiled_blocks, "its blocks are a OptimizedModule, not the nn.Sequential that timm makes"),
        (merger_attribute, "block 2 has an attribute named 'merger' already"),
        (lambda model: torch.compile(model, backend="eager"), "it is compiled; insert first and compile then"),
        (lambda model: nn.DataParallel(model), "it is wrapped already; insert into the model first"),
    ],
)
def test_models_that_another_tool_changed_are_refused(vit, change, message):
    model = change(vit)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        insert(model, 4)
    assert snapshot(model) == before


def test_a_forward_that_is_the_one_of_its_class_is_no_change(vit, images):
    expected = vit(images)
    vit.blocks[1].forward = vit.blocks[1].forward  # so transformers 5.0 leaves it after it has recorded outputs
    insert(vit, 4)
    assert "forward" not in vars(vit.blocks[1])
    merged = vit(images)
    vit.blocks[1].forward = vit.blocks[1].forward
    assert torch.equal(copy.deepcopy(vit)(images), merged)
    assert torch.equal(remove(vit)(images), expected)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_and_traced_models_are_refused(vit, images):
    for model in (torch.jit.trace(vit, images), torch.jit.script(copy.deepcopy(vit))):
        with pytest.raises(UnsupportedModelError, match="it is scripted; pass the model that was scripted"):
            insert(model, 4)


@torch.no_grad()
def test_a_block_compiled_in_place_can_merge(vit, images):
    plain = copy.deepcopy(vit)
    vit.blocks[1].compile(backend="eager")
    vit(images)
    (found,) = mergers(insert(vit, 4))
    assert torch.equal(vit(images), by_hand(plain, images, {2: found.module}, passing=1))


@pytest.mark.parametrize("root", [False, True])
def test_sharded_models_are_refused(vit, root):
    # What fully_shard does to the class; the real thing is in test_mechanism.py.
    module = vit if root else vit.blocks[1]
    module.__class__ = type("FSDP" + type(module).__name__, (FSDPModule, type(module)), {})
    with pytest.raises(UnsupportedModelError, match="it is sharded already; insert first, then call fully_shard"):
        insert(vit, 4)


def test_the_error_survives_a_worker_process(vit):
    error = UnsupportedModelError(vit, "a reason", "a way out")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UnsupportedModelError
    assert str(again) == "VisionTransformer cannot take a merger: a reason; a way out"


def test_attention_masks_are_refused(vit, images):
    insert(vit, 4)
    with pytest.raises(
        ValueError, match="attn_mask was given to a merged model, but it speaks of the tokens before the merge"
    ):
        vit(images, attn_mask=torch.ones(17, 17, dtype=torch.bool))
    with pytest.raises(ValueError, match="is_causal was given to a merged model"):
        vit(images, is_causal=True)


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
    with pytest.raises(UnsupportedModelError, match=r"it only wraps the model for features; insert into its \.model"):
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
    insert(vit, (8, 4), after=(1, 3))
    assert vit.no_weight_decay() == plain | {"blocks.0.merger.weight", "blocks.2.merger.weight"}
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


def test_a_patch_merger_can_be_given_as_reducer(vit, images):
    merger = PatchMerger(32, 4)
    insert(vit, 4, reducer=merger)
    assert mergers(vit)[0].module is merger
    assert vit(images).shape == (2, 5)
