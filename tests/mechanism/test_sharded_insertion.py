"""Merged models in several processes: whole weights on each (DDP) or shared out (FSDP2)."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from conftest import make_images
from merged_models import make_merged, make_plain, make_rotary, step
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, remove

pytestmark = pytest.mark.usefixtures("one_thread")


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
    with pytest.raises(UnsupportedModelError, match="it is wrapped already; pass the model inside"):
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


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_ddp_and_fsdp2():
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_checks, (2, folder), nprocs=2)
