"""What the library needs to know of a host model, and the error for a model that cannot take a merger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from patchmerger.seams import Seam, host_class


class UnsupportedModelError(ValueError):
    """The model cannot take a merger; the message names its class, the reason and what would do."""

    def __init__(self, model: nn.Module, reason: str, way_out: str) -> None:
        super().__init__(f"{host_class(model).__name__} cannot take a merger: {reason}; {way_out}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the message, so that the error survives the way out of a worker process."""
        return (type(self).__new__, (type(self), *self.args))


@dataclass(frozen=True)
class Host:
    """Where a model keeps what a merger touches.

    Attributes:
        blocks: The transformer blocks, in order.
        blocks_name: Their name in the model, as state-dict keys have it.
        dim: Features of a token.
        num_prefix_tokens: Tokens before the patches (class, distillation, register tokens).
        num_patches: Patch tokens of an image; ``None`` where images of several sizes are taken.
        prefix_is_needed: Why the tokens before the patches must stay apart, or ``None``.
        root_seam: The seam for the model itself.
    """

    blocks: Sequence[nn.Module]
    blocks_name: str
    dim: int
    num_prefix_tokens: int
    num_patches: int | None
    prefix_is_needed: str | None
    root_seam: type[Seam]


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that another tool wrapped: a merger put inside would be ignored or left out of sync."""
    if isinstance(model, OptimizedModule):
        raise UnsupportedModelError(model, "it is compiled", "insert first and compile then, or pass model._orig_mod")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(model, "it is scripted", "pass the model that was scripted")
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise UnsupportedModelError(model, "it is wrapped already", "insert into the model first, then wrap it")
    refuse_sharded(model, ())


def refuse_sharded(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Refuse a sharded model or block: a merger put in now would be neither sharded nor synchronised."""
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    sharded = any(isinstance(m, FSDPModule | FullyShardedDataParallel) for m in (model, *blocks)) or any(
        isinstance(p, DTensor) for block in blocks for p in block.parameters()
    )
    if sharded:
        raise UnsupportedModelError(model, "it is sharded already", "insert first, then call fully_shard")


def refuse_unusual_blocks(model: nn.Module, blocks: Sequence[nn.Module], known: tuple[type[nn.Module], ...]) -> None:
    """Refuse blocks of another class than those known to run on any number of tokens."""
    for number, block in enumerate(blocks, start=1):
        if isinstance(block, OptimizedModule):
            raise UnsupportedModelError(
                model,
                f"block {number} is wrapped by torch.compile, which would hide the merger",
                "insert first and compile then, or compile with block.compile()",
            )
        if host_class(block) not in known:
            raise UnsupportedModelError(
                model,
                f"block {number} is a {host_class(block).__name__}, not known to run on any number of tokens",
                f"supported are {', '.join(cls.__name__ for cls in known)}",
            )
    if len({id(block) for block in blocks}) < len(blocks):
        raise UnsupportedModelError(
            model, "a block stands in it more than once", "a merger there would merge more than once: copy the block"
        )
