"""What must keep working around a merged model: copies, compilers, checkpointing, several processes."""

import copy
import io
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from conftest import make_images, make_timm, make_vit
from patchmerger.hosts import UnsupportedModelError
from patchmerger.inserted import mergers
from patchmerger.insertion import insert, remove

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANT = "registers, LayerScale"


def make_plain() -> nn.Module:
    return make_vit(VARIANT, depth=3, embed_dim=16)


def make_merged() -> nn.Module:
    return merge(make_plain())


def merge(model: nn.Module, num_tokens: int | tuple[int, ...] = 4, after: int | tuple[int, ...] = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return insert(model, num_tokens, after)


# One table for all blocks and a class token; one for each block and head, and no prefix.
ROPE = {
    "axial": ("vit_small_patch16_rope_224", {}),
    "mixed": ("vit_small_patch16_rope_mixed_224", {"class_token": False, "global_pool": "avg"}),
}


def make_rotary(kind: str) -> nn.Module:
    """A model whose blocks are told where merged tokens come from, over two merges."""
    architecture, arguments = ROPE[kind]
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
    return merge(make_timm(architecture, **sizes, **arguments), (9, 4), (1, 2))


@pytest.fixture
def plain() -> nn.Module:
    return make_plain()


@pytest.fixture
def merged() -> nn.Module:
    return make_merged()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Compiled graphs are kept by the process: one test's must not be another's."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and gradients of one training step's forward and backward."""
    model.zero_grad()
    outputs = model(images)
    outputs.square().mean().backward()
    return outputs.detach(), gradients(model)


def assert_same_classes(first: nn.Module, second: nn.Module) -> None:
    assert [type(m) for m in first.modules()] == [type(m) for m in second.modules()]


# State dicts and copies


def test_state_dict_goes_both_ways(plain, merged, images):
    missing, unexpected = merged.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert set(missing) == {f"blocks.0.merger.{name}" for name in ("weight", "norm.weight", "norm.bias")}
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
import sys, torch
saved = torch.load(sys.argv[1], weights_only=False)
torch.testing.assert_close(saved["model"](saved["images"]), saved["outputs"])
from patchmerger import mergers, remove
assert [found.after for found in mergers(saved["model"])] == [1]
remove(saved["model"])(saved["images"])
print("loaded")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved.pt")], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "loaded", done.stderr


def test_one_class_for_each_pair(merged):
    other = make_merged()
    assert_same_classes(other, merged)
    assert type(merged) is not type(make_plain())
    assert type(merged).__name__ == "VisionTransformer"


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


# Gradient checkpointing


def two_forwards(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of a backward pass after two forward passes, of batches of two sizes."""
    first, second = make_images(2), make_images(5).flip(0)[:3]
    model.train().zero_grad()
    outputs = model(first), model(second)
    (outputs[0].square().sum() + outputs[1].square().sum()).backward()
    return gradients(model)


def test_checkpointing_with_two_forwards_before_the_backward(merged):
    expected = two_forwards(merged)
    merged.set_grad_checkpointing()
    given = two_forwards(merged)
    assert given.keys() == expected.keys()
    assert "blocks.0.merger.weight" in given
    for name, gradient in expected.items():
        assert torch.equal(given[name], gradient), name


# What carries the places of merged tokens from block to block


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
        ("axial", "the model, checkpointed"),
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


# Several processes


def run_checks(rank: int, world_size: int, folder: str) -> None:
    """What each of the processes does; both kinds of parallelism in one, for starting one takes longest."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        images = make_images(4)
        for model in (make_merged(), make_rotary("mixed")):
            for check in (check_ddp, check_fsdp):
                check(copy.deepcopy(model), images, images.chunk(world_size)[rank])
        check_sharding_first()
    finally:
        dist.destroy_process_group()


def assert_steps_equal(given: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.testing.assert_close(given[0], expected[0].chunk(size)[rank])
    assert given[1].keys() == expected[1].keys()
    assert any(".merger." in name for name in expected[1])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(given[1][name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def check_ddp(model: nn.Module, images: Tensor, mine: Tensor) -> None:
    """The mean of the ranks' gradients is that of all images at once."""
    expected = step(copy.deepcopy(model), images)
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        wrapped = DistributedDataParallel(model)
        outputs, found = step(wrapped, mine)
        assert_steps_equal((outputs, {name.removeprefix("module."): g for name, g in found.items()}), expected)
    with pytest.raises(UnsupportedModelError, match="it is wrapped already; insert into the model first"):
        insert(wrapped, 2, after=2)


def check_fsdp(model: nn.Module, images: Tensor, mine: Tensor) -> None:
    """Sharded on each block and the root, with and without checkpointing."""
    expected = step(copy.deepcopy(model), images)
    for checkpointing in (False, True):
        sharded = copy.deepcopy(model)
        sharded.set_grad_checkpointing(checkpointing)
        for block in sharded.blocks:
            fully_shard(block)
        fully_shard(sharded)
        for module in sharded.modules():
            if isinstance(module, FSDPModule):
                # gloo of torch 2.8 sums where it should average: github.com/pytorch/pytorch/issues/162338
                module.set_force_sum_reduction_for_comms(True)
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        assert sharded.state_dict().keys() == model.state_dict().keys()
        outputs, found = step(sharded, mine)
        assert_steps_equal((outputs, {name: g.full_tensor() for name, g in found.items()}), expected)
    with pytest.raises(UnsupportedModelError, match="it is sharded already"):
        remove(sharded)


def check_sharding_first() -> None:
    """Inserting after sharding is refused."""
    late = make_plain()
    fully_shard(late.blocks[0])
    root = make_plain()
    fully_shard(root)
    for refused in (late, root):
        with pytest.raises(UnsupportedModelError, match="it is sharded already; insert first, then call fully_shard"):
            insert(refused, 2, after=2)


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_ddp_and_fsdp2():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_checks, (2, folder), nprocs=2)


def test_a_step_of_training_moves_the_merger(merged, images):
    merged.train()
    before = merged.blocks[0].merger.weight.detach().clone()
    optimizer = torch.optim.SGD(merged.parameters(), lr=0.1)
    F.cross_entropy(merged(images), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not torch.equal(merged.blocks[0].merger.weight, before)
