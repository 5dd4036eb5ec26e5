"""Where merged tokens come from, which travels with them from block to block."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.tracing import is_traced


@dataclass
class Origin:
    """Where merged tokens come from; it travels with them, as an attribute of their tensor.

    A block could not keep it: two forward passes may come before a backward pass that runs blocks again.

    Attributes:
        weights: A, (B, M, N): how much of each patch is in each token, over all merges so far, where that is needed.
        sizes: How many patches are in each token, (B, M), for proportional attention; ``None`` where all count alike.
        places: The centroid of each token's patches, (B, M, 2), where a merger must know it.
        table: The rotary table of the block before; most hosts give all blocks the same one.
        rope_arguments: What it became for the merged tokens.
    """

    weights: Tensor | None = None
    sizes: Tensor | None = None
    places: Tensor | None = None
    table: Any = None
    rope_arguments: dict[str, Any] = field(default_factory=dict)

    def turned(self, rope: Rope | None, given: dict[str, Any]) -> Origin:
        """With the rotary arguments for merged tokens of a block that was ``given`` those of patches."""
        table = None if rope is None else rope.table(given)
        if rope is None or table is self.table or self.weights is None:
            return self
        arguments = {} if table is None else rope.merge(given, self.weights)
        return replace(self, table=table, rope_arguments=arguments)

    def bias(self, x: Tensor) -> Tensor | None:
        """Log sizes, (B, 1, 1, P + M), to be added to attention scores among ``x`` (B, P + M, D).

        In an exported graph (B, 1, P + M, P + M): ONNX Runtime takes a bias for each query alone.
        """
        if self.sizes is None:
            return None
        bias = self.sizes.log().to(x.dtype)
        prefix = x.shape[1] - bias.shape[1]
        bias = F.pad(bias, (prefix, 0))[:, None, None]
        return bias.expand(-1, -1, x.shape[1], -1) if torch.compiler.is_exporting() else bias


def origin_of(x: Tensor, *, lost: str, cure: str) -> Origin:
    """Where the merged tokens ``x`` come from.

    Raises:
        RuntimeError: Their tensor was replaced on the way from one block to the next; with what is ``lost``, and what
            would be a ``cure`` besides a way that does not replace it.
    """
    if is_traced(x):  # whose every attribute is a proxy
        return cast(Origin, vars(x)["patchmerger_origin"])
    origin: Origin | None = getattr(x, "patchmerger_origin", None)
    if origin is None and _is_whole(x):
        origin = getattr(x._base, "patchmerger_origin", None)
    if origin is None:
        raise RuntimeError(
            f"merged tokens came without their {lost}: something between two blocks replaced their tensor (as "
            f"checkpointing with use_reentrant=True does): checkpoint with use_reentrant=False{cure}"
        )
    return origin


def _is_whole(x: Tensor) -> bool:
    """Whether ``x`` is a view of all of another tensor, as ``fully_shard`` hands to each block that it shards."""
    base = x._base
    return base is not None and (base.shape, base.stride(), base.storage_offset()) == (
        x.shape,
        x.stride(),
        x.storage_offset(),
    )
