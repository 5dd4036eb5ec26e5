"""Weights shared out over devices by FSDP2 (``torch.distributed.fsdp.fully_shard``), through Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from patchmerger.hosts import find_host


class ShardedStrategy(ModelParallelStrategy):
    """Every device holds its share of each weight, gradient and optimiser state, and trains on its share of a batch.

    A checkpoint is one file with whole weights, which any number of devices can go on from.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Share data and weights out over all devices; Lightning's default is over machines only."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Share the weights of ``model``, mergers too, out over the devices of ``mesh``, block by block, in place; once."""
    if isinstance(model, FSDPModule):
        return
    for part in (*find_host(model).blocks, model):
        fully_shard(part, mesh=mesh)
        if mesh.device_type == "cpu" and isinstance(part, FSDPModule):
            # gloo of torch 2.8 sums where it should average: github.com/pytorch/pytorch/issues/162338
            part.set_force_sum_reduction_for_comms(True)


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out; then every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy the weights of ``sharded`` into ``whole``, a copy of before, on every process; all must call it."""
    targets = whole.state_dict()
    for name, tensor in sharded.state_dict().items():
        targets[name].copy_(full(tensor))
