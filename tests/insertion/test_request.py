"""Options, models and inputs that are refused: with the reason, and with nothing changed."""

import copy
import pickle
from functools import partial

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.distributed.fsdp import FSDPModule

from conftest import make_images, make_vit
from insertion_helpers import Strided, snapshot
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reducer": Strided(2)}, r"reducer \(Strided\) gives \(1, 8, 32\) for 16 tokens of width 32, but num_tokens "),
        ({"reducer": nn.LSTM(32, 32)}, r"reducer \(LSTM\) gives tuple for 16 tokens"),
        ({"reducer": AveragePool(4), "scale": 2.0}, "norm, scale, init and prior are PatchMerger's"),
        ({"reducer": AveragePool(4), "init": torch.ones(4, 32)}, "norm, scale, init and prior are PatchMerger's"),
        (
            {"reducer": [AveragePool(4)] * 2, "after": (1, 2)},
            "one module for each of the 2 blocks .* none of them twice",
        ),
        ({"reducer": AveragePool(4), "after": (1, 2)}, "one module for each of the 2 blocks"),
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
        ({"reducer": None}, r"reducer \(None\) must be the name of a method, a module, or a sequence of modules"),
        ({"reducer": nn.ModuleList([AveragePool(4)]), "after": (1, 2)}, "one module for each of the 2 blocks"),
        ({"init": "zeros"}, r"init \('zeros'\) must be W itself, a tensor, or a function"),
        (
            {"init": torch.ones(3, 32)},
            r"init has shape \(3, 32\), but W is \(num_tokens · num_heads, dim\) = \(4, 32\)",
        ),
    ],
)
def test_refused_options_change_nothing(vit, options, message):
    before = snapshot(vit)
    with pytest.raises((ValueError, TypeError), match=message):
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
    with pytest.raises(ValueError, match=r"prefix \('keep'\) must be that of the merger after block 2"):
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
        (lambda model: torch.compile(model, backend="eager"), "it is compiled; pass model._orig_mod"),
        (lambda model: nn.DataParallel(model), "it is wrapped already; pass the model inside"),
    ],
)
def test_models_that_another_tool_changed_are_refused(vit, change, message):
    model = change(vit)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        insert(model, 4)
    assert snapshot(model) == before


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_scripted_and_traced_models_are_refused(vit, images):
    for model in (torch.jit.trace(vit, images), torch.jit.script(copy.deepcopy(vit))):
        with pytest.raises(UnsupportedModelError, match="it is scripted; pass the model that was scripted"):
            insert(model, 4)


@pytest.mark.parametrize("root", [False, True])
def test_sharded_models_are_refused(vit, root):
    # What fully_shard does to the class; the real thing is in test_sharded_insertion.py.
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


class Halves(nn.Module):
    """A reducer that does not tell its weights."""

    def forward(self, x):
        return x[:, ::2]


def test_located_queries_after_a_reducer_that_does_not_tell_its_weights():
    model = insert(make_vit(), 8, 1, reducer=Halves())
    with pytest.raises(ValueError, match=r"prior \('grid'\) after block 2.*after block 1 \(Halves\).*return_weights"):
        insert(model, 4, 2, prior="grid")
    assert len(mergers(model)) == 1
    located = insert(make_vit(), 4, 2, prior="grid")
    with pytest.raises(ValueError, match=r"prior \('grid'\) after block 2.*Halves"):
        insert(located, 8, 1, reducer=Halves())
    insert(make_vit(), 4, 1, prior="grid")(make_images())
