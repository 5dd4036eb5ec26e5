"""What carries the places of merged tokens from block to block, under copies, compilers and checkpointing."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conftest import make_images, make_vit
from merged_models import ROPE, assert_same_classes, make_rotary, step, two_forwards
from patchmerger.insertion import insert, remove

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=list(ROPE))
def rotary(request: pytest.FixtureRequest) -> nn.Module:
    return make_rotary(request.param)


def test_positions_under_checkpointing_with_two_forwards_before_the_backward(rotary):
    expected = two_forwards(rotary)
    rotary.set_grad_checkpointing()
    given = two_forwards(rotary)
    assert given.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(given[name], gradient), name
    for number in (0, 1):
        assert given[f"blocks.{number}.merger.weight"].abs().max() > 0


def test_positions_are_not_carried_through_reentrant_checkpointing(rotary):
    table, tokens = torch.randn(16, 16), torch.randn(2, rotary.num_prefix_tokens + 16, 16)
    merged = rotary.blocks[1](rotary.blocks[0](tokens, rope=table), rope=table)
    output = checkpoint(rotary.blocks[2], merged, table, use_reentrant=True)
    message = r"merged tokens came without their positions: .* use_reentrant=False"
    with pytest.raises(RuntimeError, match=message):
        output.sum().backward()
    with pytest.raises(RuntimeError, match=message):
        rotary.blocks[2](merged.detach(), rope=table)


@pytest.mark.parametrize(
    ("architecture", "options", "lost", "droppable"),
    [
        ("rotary", {}, "positions", True),
        ("rotary", {"positions": "drop", "reducer": "tome"}, "sizes", False),
        ("rotary", {"reducer": "tome"}, "positions and sizes", False),
        ("rotary", {"num_tokens": [8, 4], "after": [1, 2], "prior": "grid"}, "positions", False),
        ("class token", {"num_tokens": [8, 4], "after": [1, 2], "prior": "grid"}, "positions", False),
        ("class token", {"reducer": "tome"}, "sizes", False),
    ],
)
def test_positions_are_dropped_by_advice_only_where_that_helps(architecture, options, lost, droppable, images):
    model = make_rotary(next(iter(ROPE))) if architecture == "rotary" else make_vit(depth=4)
    model = insert(remove(model) if architecture == "rotary" else model, **{"num_tokens": 8, "after": 1, **options})
    model.blocks[1].register_forward_pre_hook(lambda _, args: (args[0].clone(), *args[1:]))
    with pytest.raises(RuntimeError, match=f"came without their {lost}: .* use_reentrant=False") as refused:
        model(images)
    assert ("positions='drop'" in str(refused.value)) == droppable
    if droppable:
        insert(remove(model), **{"num_tokens": 8, "after": 1, "positions": "drop"})(images)


def train(model: nn.Module, steps: int = 2) -> nn.Module:
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(make_images(2)), torch.tensor([0, 1])).backward()
        optimizer.step()
    return model.eval()


def test_positions_after_training_and_a_deepcopy(rotary, images):
    expected = step(train(rotary), images)
    again = copy.deepcopy(rotary)
    assert_same_classes(again, rotary)
    assert_same_steps(step(again, images), expected)
    assert_same_steps(step(train(again), images), step(train(rotary), images))


def assert_same_steps(given: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    assert torch.equal(given[0], expected[0])
    assert given[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.equal(given[1][name], gradient), name


def test_positions_after_pickle(rotary, images):
    again = pickle.loads(pickle.dumps(train(rotary)))
    assert_same_classes(again, rotary)
    assert_same_steps(step(again, images), step(rotary, images))
    assert remove(again)(images).shape == (2, 5)


# A warning that torch gives for plain models too, where a block that was compiled alone gets tokens with a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        pytest.param("axial", "the model, checkpointed", marks=pytest.mark.slow),
        pytest.param("mixed", "the model", marks=pytest.mark.slow),
        pytest.param("mixed", "each block", marks=pytest.mark.slow),
    ],
)
def test_positions_compiled(kind, how, images):
    model = make_rotary(kind).train()
    expected, expected_gradients = step(model, images)
    if how == "each block":
        for block in model.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        compiled = model
    else:
        model.set_grad_checkpointing("checkpointed" in how)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    try:
        given, given_gradients = step(compiled, images)
    except torch._dynamo.exc.Unsupported:  # said, and never silently wrong
        if "checkpointed" in how and torch.__version__ < "2.9":
            pytest.skip("torch 2.8 drops what a tensor carries where it compiles a checkpoint")
        raise
    torch.testing.assert_close(given, expected)
    for name, gradient in expected_gradients.items():
        found = given_gradients[name if compiled is model else f"_orig_mod.{name}"]
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@torch.no_grad()
def test_positions_compiled_by_inductor(rotary, images):
    torch.testing.assert_close(torch.compile(rotary, fullgraph=True)(images), rotary(images), rtol=1e-4, atol=1e-5)


def test_positions_exported_saved_and_loaded(images, tmp_path):
    rotary = make_rotary("mixed")
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(rotary, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "merged.pt2")
    again = torch.export.load(tmp_path / "merged.pt2").module()
    for number in (2, 5):
        torch.testing.assert_close(again(make_images(number)), rotary(make_images(number)), rtol=1e-4, atol=1e-5)
