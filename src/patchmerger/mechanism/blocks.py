"""The seams of the blocks: one that merges the tokens which leave it, and those after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from patchmerger.mechanism.block_inputs import BlockInputs, Positions
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.subclassing import Seam, has_seam


@dataclass
class Origin:
    """Where merged tokens come from; it travels with them, as an attribute of their tensor.

    A block could not keep it: two forward passes may come before a backward pass that runs blocks again.

    Attributes:
        weights: A, (B, M, N): how much of each patch is in each token, over all merges so far.
        table: The rotary table of the block before; most hosts give all blocks the same one.
        rope_arguments: What it became for the merged tokens.
    """

    weights: Tensor
    table: Any = None
    rope_arguments: dict[str, Any] = field(default_factory=dict)

    def turned(self, rope: Rope | None, given: dict[str, Any]) -> Origin:
        """With the rotary arguments for merged tokens of a block that was ``given`` those of patches."""
        table = None if rope is None else rope.table(given)
        if rope is None or table is self.table:
            return self
        return Origin(self.weights, table, {} if table is None else rope.merge(given, self.weights))


# What the seams below keep in a block, beside the child `merger`.
ATTRIBUTES = (
    "block_inputs",
    "input_names",
    "merge_positions",
    "after_merge",
    "num_passing_tokens",
    "num_merged_tokens",
    "num_expected_tokens",
)


class LaterBlock(Seam):
    """A block after a merge: it is given the positions of merged tokens, and no mask or bias of those before.

    Attributes:
        block_inputs: What of its arguments counts on N tokens.
        input_names: Names of its positional arguments after the tokens.
        merge_positions: What becomes of positions; ``None`` where the host's blocks know of none.
        after_merge: Whether the tokens that come in are merged ones.
    """

    block_inputs: BlockInputs
    input_names: tuple[str, ...]
    merge_positions: Positions | None
    after_merge: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the host's block, (B, P + M, D) → (B, P + M, D)."""
        given = self.named(args, kwargs)
        self.block_inputs.refuse_unknown(given)
        if not self.after_merge:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        merged = self.block_inputs.without_places(given)
        if self.merge_positions != "centroid":
            return super().forward(x, **{**given, **merged})  # type: ignore[misc]
        origin = origin_of(x).turned(self.block_inputs.rope, given)
        output = super().forward(x, **{**given, **merged, **origin.rope_arguments})  # type: ignore[misc]
        _tokens(output).patchmerger_origin = origin  # type: ignore[attr-defined]
        return output

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments after the tokens, by name."""
        return {**dict(zip(self.input_names[: len(args)], args, strict=True)), **kwargs}


class MergingBlock(LaterBlock):
    """Runs the host's own block, then its child ``merger`` on the tokens that come out.

    Attributes:
        merger: The reducer, (B, N, D) → (B, M, D).
        num_passing_tokens: The first tokens of the sequence, which pass by the merger untouched.
        num_merged_tokens: M.
        num_expected_tokens: P + N where another number is refused, or ``None``.
    """

    merger: nn.Module
    num_passing_tokens: int
    num_merged_tokens: int
    num_expected_tokens: int | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """(B, P + N, D) → (B, P + M, D), for P tokens that pass by."""
        passing = self.num_passing_tokens
        output = super().forward(x, *args, **kwargs)
        x = _tokens(output)  # (B, P + N, D)
        if self.num_expected_tokens not in (None, x.shape[1]):
            raise _other_number(x, self.num_expected_tokens)
        mask = None if self.after_merge else self.block_inputs.real_tokens(self.named(args, kwargs), passing)
        arguments = {} if mask is None else {"mask": mask}
        origin = None
        if self.merge_positions == "centroid":
            merged, weights = self.merger(x[:, passing:], return_weights=True, **arguments)
            origin = Origin(weights @ origin_of(x).weights if self.after_merge else weights)
        else:
            merged = self.merger(x[:, passing:] if passing else x, **arguments)  # (B, M, D)
        if passing:
            merged = torch.cat((x[:, :passing], merged), dim=1)  # (B, P + M, D)
        if origin is not None:
            merged.patchmerger_origin = origin
        return (merged, *output[1:]) if isinstance(output, tuple) else merged


def origin_of(x: Tensor) -> Origin:
    """Where the merged tokens ``x`` come from.

    Raises:
        RuntimeError: Their tensor was replaced on the way from one block to the next.
    """
    origin: Origin | None = getattr(x, "patchmerger_origin", None)
    if origin is None and _is_whole(x):
        origin = getattr(x._base, "patchmerger_origin", None)
    if origin is None:
        raise RuntimeError(
            "merged tokens came without their positions: something between two blocks replaced their tensor (as "
            "checkpointing with use_reentrant=True does): checkpoint with use_reentrant=False, or insert with "
            "positions='none'"
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


def is_merging(block: nn.Module) -> TypeGuard[MergingBlock]:
    """Whether tokens are merged after ``block``."""
    return has_seam(block, MergingBlock)


def _tokens(output: Any) -> Tensor:
    """The tokens in what a block gives: itself, or the first of a tuple."""
    x = output[0] if isinstance(output, tuple) and output else output
    if isinstance(x, torch.fx.Proxy):  # traced symbolically, as torchvision's feature extractor does
        return cast(Tensor, x)
    if not isinstance(x, Tensor) or x.ndim != 3:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"a block must give tokens (B, N, D), or a tuple that begins with them, and not {given}")
    return x


def _other_number(x: Tensor, expected: int | None) -> ValueError:
    return ValueError(
        f"tokens {tuple(x.shape)} came to the merger, but by the description of its model they are (B, {expected}, D): "
        "mend num_prefix_tokens or num_patches of its Host, or leave num_patches out where their number changes"
    )
