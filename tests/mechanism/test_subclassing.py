"""What must keep working around a merged model: copies, compilers, training, checkpointing."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import make_images, make_vit
from merged_models import assert_same_classes, make_merged, make_plain, step, two_forwards
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from processes import run_program

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def plain() -> nn.Module:
    return make_plain()


@pytest.fixture
def merged() -> nn.Module:
    return make_merged()


# State dicts and copies


def test_state_dict_goes_both_ways(plain, merged, images):
    missing, unexpected = merged.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == {f"blocks.0.merger.{name}" for name, _ in merged.blocks[0].merger.named_parameters()}
    other = insert(make_plain(), 4, after=1)
    assert not torch.equal(other(images), merged(images))
    other.load_state_dict(merged.state_dict())
    assert torch.equal(other(images), merged(images))


def test_deepcopy_is_independent(merged, images):
    expected = merged(images)
    again = copy.deepcopy(merged)
    assert_same_classes(again, merged)
    assert torch.equal(again(images), expected)
    with torch.no_grad():
        again.blocks[0].merger.weight.zero_()
    assert torch.equal(merged(images), expected)
    assert not torch.equal(again(images), expected)
    remove(again)
    assert len(mergers(merged)) == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(merged, images, protocol):
    again = pickle.loads(pickle.dumps(merged, protocol))
    assert_same_classes(again, merged)
    assert torch.equal(again(images), merged(images))
    assert torch.equal(remove(again)(images), make_plain()(images))


def test_torch_save(merged, images):
    file = io.BytesIO()
    torch.save(merged, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_same_classes(again, merged)
    assert torch.equal(again(images), merged(images))


def test_torch_load_in_a_fresh_process(merged, images, tmp_path):
    torch.save({"model": merged, "images": images, "outputs": merged(images)}, tmp_path / "saved.pt")
    program = """
import torch
saved = torch.load("saved.pt", weights_only=False)
torch.testing.assert_close(saved["model"](saved["images"]), saved["outputs"])
from patchmerger import mergers, remove
assert [found.after for found in mergers(saved["model"])] == [1]
remove(saved["model"])(saved["images"])
print("loaded")
"""
    done = run_program(program, tmp_path)
    assert done.out.strip() == "loaded", done.err


def test_one_class_for_each_pair(merged):
    other = make_merged()
    assert_same_classes(other, merged)
    assert type(merged) is not type(make_plain())
    assert type(merged).__name__ == "VisionTransformer"


def test_the_signature_stays_that_of_the_host(merged):
    for part, plain_part in zip((merged, *merged.blocks), (make_plain(), *make_plain().blocks), strict=True):
        assert inspect.signature(part.forward) == inspect.signature(plain_part.forward)


def test_remove_after_a_round_of_everything(merged, images):
    plain = make_plain()
    again = remove(pickle.loads(pickle.dumps(copy.deepcopy(merged))))
    assert_same_classes(again, plain)
    assert again.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(again(images), plain(images))


def test_inserting_again_after_remove(merged, images):
    expected = merged(images)
    weights = merged.state_dict()
    again = insert(remove(merged), 4, after=1)
    again.load_state_dict(weights)
    assert torch.equal(again(images), expected)


# Compilers


@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_compile_equals_eager(images):
    model = insert(make_vit(depth=2, embed_dim=16), 4)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_gradients_equal_eager_ones(merged, images):
    compiled = torch.compile(merged, backend="aot_eager", fullgraph=True)
    expected, expected_gradients = step(merged, images)
    given, given_gradients = step(compiled, images)
    torch.testing.assert_close(given, expected)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(given_gradients[f"_orig_mod.{name}"], gradient, rtol=1e-4, atol=1e-6)


# The backend does not matter for whether the right graph runs, so the fastest one is used.
@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_compile_the_plain_model_first_then_another_merged_one(plain, merged, images):
    expected_plain, expected_merged = plain(images), merged(images)
    assert not torch.allclose(expected_plain, expected_merged, atol=1e-3)
    for model, expected in ((plain, expected_plain), (merged, expected_merged), (plain, expected_plain)):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(images), expected)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
@torch.no_grad()
def test_compile_the_plain_model_first_then_insert_into_it(plain, merged, images, how):
    expected_plain, expected_merged = plain(images), merged(images)
    if how == "model.compile()":
        plain.compile(backend="eager", fullgraph=True)
        compiled = plain
    else:
        compiled = torch.compile(plain, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected_plain)
    insert(plain, 4, after=1)
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(compiled(images), expected_merged)
    remove(plain)
    torch.testing.assert_close(compiled(images), expected_plain)


@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_compiled_settings_are_not_mixed_up(images):
    """One architecture, one class, other numbers of tokens, places and scales: each has its own graph."""
    for num_tokens, after, scale in ((4, 1, 1.0), (6, 1, 1.0), (6, 2, 1.0), (6, 2, 0.5)):
        model = insert(make_plain(), num_tokens, after, scale=scale)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def test_export_and_its_save_and_load(merged, images, tmp_path):
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(merged, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "merged.pt2")
    again = torch.export.load(tmp_path / "merged.pt2").module()
    for number in (2, 5):
        torch.testing.assert_close(again(make_images(number)), merged(make_images(number)))
    assert program.state_dict.keys() == merged.state_dict().keys()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace(merged, images):
    traced = torch.jit.trace(merged, images)
    torch.testing.assert_close(traced(make_images(5)), merged(make_images(5)))


def test_fx(merged, images):
    # torch 2.8 cannot trace the flag into the attention
    traced = torch.fx.symbolic_trace(merged.blocks[1], {"attn_mask": None, "is_causal": False})
    tokens = torch.randn(2, 9, 16)
    torch.testing.assert_close(traced(tokens), merged.blocks[1](tokens))


# Training and gradient checkpointing


def test_a_step_of_training_moves_the_merger(merged, images):
    merged.train()
    before = merged.blocks[0].merger.weight.detach().clone()
    optimizer = torch.optim.SGD(merged.parameters(), lr=0.1)
    F.cross_entropy(merged(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not torch.equal(merged.blocks[0].merger.weight, before)


def test_checkpointing_with_two_forwards_before_the_backward(merged):
    expected = two_forwards(merged)
    merged.set_grad_checkpointing()
    given = two_forwards(merged)
    assert given.keys() == expected.keys()
    assert "blocks.0.merger.weight" in given
    for name, gradient in expected.items():
        assert torch.equal(given[name], gradient), name
