"""Hooks of an attention that a reducer works with take part; attentions and blocks that were patched are refused."""

import pytest
import torch

from conftest import make_images, make_vit
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.attention import block_parts
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers
from reducers.test_inside_blocks import Keeps, make, run

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_attention_with_a_hook_has_the_last_word():
    model = insert(make_vit(), 4, 2, reducer="topk")
    with torch.no_grad():
        before = run(model, make_images())
        with model.blocks[1].attn.register_forward_hook(lambda _, __, output: 2 * output):
            assert not torch.allclose(run(model, make_images()), before, atol=1e-2)


def test_sizes_count_where_an_attention_has_hooks():
    model, images = insert(make_vit(), 4, 2, reducer="tome"), make_images()
    with torch.no_grad():
        before = model(images)
        model.blocks[2].attn.register_forward_hook(lambda *_: None)
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("name", ["timm", "transformers ViT", "torchvision"])
def test_hooks_of_an_attention_take_part(name):
    """A pre-hook changes what attention computes, sees and shows; backward hooks are called."""
    model, images, called = insert(make(name), 5, 2, reducer=Keeps(5)), make_images(), []
    block = next(module for module in model.modules() if hasattr(module, "merger"))
    parts = block_parts(block)
    attention = getattr(block, parts.attention)
    run(model, images)
    before = Keeps.found
    attention.register_full_backward_hook(lambda *_: called.append("backward"))
    attention.register_forward_pre_hook(
        lambda _, args, kwargs: (tuple(a if a is None else 2 * a for a in args), kwargs), with_kwargs=True
    )
    attention.register_forward_pre_hook(lambda *_: called.append("before"))
    run(model, images).sum().backward()
    assert called == ["before", "backward"]
    bias = {"timm": "qkv.bias", "torchvision": "in_proj_bias"}.get(name)
    keys = attention.get_parameter(bias).chunk(3)[1] if bias else attention.get_parameter("k_proj.bias")
    keys = keys.unflatten(0, (-1, before["keys"].shape[2])).mean(dim=0)
    torch.testing.assert_close(Keeps.found["keys"] - keys, 2 * (before["keys"] - keys), rtol=1e-4, atol=1e-5)
    assert not torch.equal(Keeps.found["tokens"], before["tokens"])


@pytest.mark.parametrize("name", ["timm", "transformers ViT"])
def test_what_another_tool_patched_is_refused(name):
    """Before insertion by insert, afterwards by the forward pass: sizes and keys would be passed by in silence."""
    model, images = insert(make(name), 4, 2, reducer="tome"), make_images()
    block = next(module for module in model.modules() if hasattr(module, "merger"))
    attention = getattr(block, block_parts(block).attention)
    attention.forward = attention.forward  # the class's own, as transformers 5.0 leaves it there
    run(model, images)
    attention.forward = lambda *args, **kwargs: type(attention).forward(attention, *args, **kwargs)
    with pytest.raises(RuntimeError, match=r"has a forward of its own .*take the patch away, or choose a reducer"):
        run(model, images)
    for part in ("attention", "block"):
        model = make(name)
        later = find_host(model).blocks[3]
        patched = getattr(later, block_parts(later).attention) if part == "attention" else later
        patched.forward = lambda *args, **kwargs: None
        with pytest.raises(
            UnsupportedModelError, match=r"has a forward of its own .*(insert before that tool|take the patch away), or"
        ):
            insert(model, 4, 2, reducer="tome")
        assert not mergers(model)
    model = make(name)
    mlp = getattr(find_host(model).blocks[1], block_parts(find_host(model).blocks[1]).mlp)
    mlp.forward = lambda x: 2 * type(mlp).forward(mlp, x)  # it is called as ever
    assert torch.isfinite(run(insert(model, 4, 2, reducer="tome"), images)).all()
