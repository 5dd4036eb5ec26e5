"""What ``insert`` is asked for, checked against the model and filled in with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError
from patchmerger.hosts.example_inputs import example_input
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.blocks import MergeState, is_merging
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.options import Positions, Prefix
from patchmerger.mechanism.subclassing import (
    Subclass,
    has_own_forward,
    host_class,
)


@dataclass(frozen=True)
class InsertionRequest:
    """A merger to put in, known to fit the model: the tokens that go on after each block (counted from 1), in order.

    ``num_kept_prefix_tokens`` stay as they are. ``positions`` are what merged tokens have in their place; ``None``
    where the blocks know of none.
    """

    num_tokens: dict[int, int]
    num_kept_prefix_tokens: int
    positions: Positions | None


def checked_request(
    model: nn.Module,
    host: Host,
    *,
    num_tokens: int | Sequence[int],
    after: int | Sequence[int] | None,
    prefix: Prefix,
    positions: Positions | None,
    inside_blocks: bool = False,
) -> InsertionRequest:
    """Check what ``insert`` is asked for and fill in its defaults; nothing in the model changes.

    The arguments and what is raised are those of :func:`patchmerger.insert`; ``inside_blocks`` says that the mergers
    work between attention and MLP, so that the last block can have one too.
    """
    wanted = _num_tokens_by_block(host, num_tokens, after, len(host.blocks) - (0 if inside_blocks else 1))
    num_kept = _num_kept_prefix_tokens(host, prefix)
    positions = _positions(model, host, positions)
    _check_blocks(model, host, wanted)
    _check_chain(host, wanted, num_kept)
    return InsertionRequest(wanted, num_kept, positions)


def num_tokens_kept(
    model: nn.Module,
    host: Host,
    *,
    num_tokens: int | Sequence[int] | None,
    after: int | Sequence[int] | None,
    keep_rate: float,
) -> list[int] | int:
    """The tokens that go on after each merger where each keeps a share of what arrives, of images of the model's size.

    What arrives is counted after the mergers that the model has already.
    """
    if num_tokens is not None:
        raise ValueError(f"num_tokens ({num_tokens}) and keep_rate ({keep_rate}) both say how many go on: give one")
    if not (isinstance(keep_rate, float | int) and 0 < keep_rate <= 1):
        raise ValueError(f"keep_rate ({keep_rate!r}) must be above 0 and at most 1: 0.5, say")
    num_patches = host.num_patches or _own_num_patches(model, host, keep_rate)
    places = after if isinstance(after, Sequence) else (len(host.blocks) // 2 if after is None else after,)
    if not all(type(place) is int for place in places):
        return 1  # such blocks are refused next
    counts = []
    for place in places:
        before = {0: num_patches} | {n: state.num_tokens for n, state in present_mergers(host).items() if n < place}
        last = max(before)
        counts.append(int(before[last] * keep_rate ** sum(last < other <= place for other in places)))
    if min(counts, default=1) < 1:
        raise ValueError(f"keep_rate ({keep_rate}) leaves no token of {num_patches} after {len(places)} mergers")
    return counts if isinstance(after, Sequence) else counts[0]


class _Arrived(BaseException):
    """Ends a forward pass at the first block."""


def _own_num_patches(model: nn.Module, host: Host, keep_rate: float) -> int:
    """The patches of an image of the size that a model was made for, where it takes several sizes."""
    arrived: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        arrived.append(args[0].shape[0 if host.sequence_first else 1] - host.num_prefix_tokens)
        raise _Arrived

    handle = host.blocks[0].register_forward_pre_hook(count)
    try:
        with eval_mode(model), torch.no_grad(), suppress(_Arrived):
            example, encoder = example_input(model).images_alone(model)
            example.run(encoder)
    except ValueError as error:
        raise ValueError(
            f"keep_rate ({keep_rate}) cannot be turned into tokens, as the size of images is not known: give "
            f"num_tokens ({error})"
        ) from error
    finally:
        handle.remove()
    return arrived[0]


def _num_tokens_by_block(
    host: Host, num_tokens: int | Sequence[int], after: int | Sequence[int] | None, last: int
) -> dict[int, int]:
    """The tokens that go on after each block to merge after, in order; ``last`` is the last block that can."""
    depth = len(host.blocks)
    if depth < 2:
        raise ValueError(f"the model has {depth} block: a merger needs a block before and a block after it")
    for name, value in (("num_tokens", num_tokens), ("after", after)):
        if isinstance(value, str):
            raise TypeError(f"{name} ({value!r}) must be a whole number or a sequence of them")
    if after is None:
        if isinstance(num_tokens, Sequence):
            raise ValueError(f"num_tokens ({list(num_tokens)}) is a sequence: say after which blocks in `after`")
        after = depth // 2
    blocks = list(after) if isinstance(after, Sequence) else [after]
    counts = list(num_tokens) if isinstance(num_tokens, Sequence) else [num_tokens] * len(blocks)
    if len(blocks) != len(counts) or not blocks:
        raise ValueError(f"after ({blocks}) and num_tokens ({counts}) must be equally long and not empty")
    for block, count in zip(blocks, counts, strict=True):
        if type(block) is not int or not 1 <= block <= last:
            raise ValueError(
                f"after ({block!r}) must be a block from 1 to {last}: the model has {depth} blocks, counted from 1"
                + (", and at least one must follow the merger" if last < depth else "")
            )
        if type(count) is not int or count < 1:
            raise ValueError(f"num_tokens ({count!r}) must be a whole number of at least 1; the paper uses 8")
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"after ({blocks}) names a block twice")
    return dict(sorted(zip(blocks, counts, strict=True)))


def _num_kept_prefix_tokens(host: Host, prefix: Prefix) -> int:
    """Prefix tokens that a merger leaves as they are with this ``prefix``."""
    if prefix not in ("keep", "merge"):
        raise ValueError(f"prefix ({prefix!r}) must be 'keep' or 'merge'")
    if prefix == "merge" and host.prefix_is_needed:
        raise ValueError(f"prefix ('merge') would merge tokens that are needed: {host.prefix_is_needed}; use 'keep'")
    num_kept = host.num_prefix_tokens if prefix == "keep" else 0
    for number, present in present_mergers(host).items():
        if present.num_kept_prefix_tokens != num_kept:
            raise ValueError(
                f"prefix ({prefix!r}) must be that of the merger after block {number}, which is there already"
            )
    return num_kept


def _positions(model: nn.Module, host: Host, positions: Positions | None) -> Positions | None:
    """What becomes of positions after a merge: as asked, or the default for this host."""
    if positions not in (None, *get_args(Positions)):
        raise ValueError(f"positions ({positions!r}) must be 'centroid' or 'drop'")
    name = host_class(model).__name__
    if host.biases or host.inputs.bias:
        if positions is None:
            raise UnsupportedModelError(
                model,
                "its blocks add a relative position bias, which has no value for a merged token",
                "positions='drop' leaves the bias out of the blocks after the merge",
                "relative bias",
            )
        if positions == "centroid":
            raise ValueError(
                f"positions ('centroid') is for rotary positions, but {name} has a relative position bias: 'drop' "
                "leaves it out of the blocks after the merge"
            )
    elif host.inputs.rope is not None:
        positions = positions or "centroid"
        if positions == "centroid" and host.no_centroid:
            raise ValueError(f"positions ('centroid') cannot be had: {host.no_centroid}, or choose 'drop'")
    elif positions is not None:
        raise ValueError(
            f"positions ({positions!r}) means nothing here: the blocks of {name} are given no positions; leave it out"
        )
    for number, present in present_mergers(host).items():
        if present.positions != positions:
            raise ValueError(
                f"positions ({positions!r}) must be those of the merger after block {number}, which is there already "
                f"({present.positions!r})"
            )
    return positions


def _check_blocks(model: nn.Module, host: Host, wanted: dict[int, int]) -> None:
    """Refuse blocks that have a merger already, or where a subclass would have no effect."""
    for number, block in enumerate(host.blocks, start=1):
        if number in wanted and is_merging(block):
            raise ValueError(f"after ({number}): there is a merger already; remove(model) takes it out")
        if number in wanted or (number > min(wanted) and host.inputs != BlockInputs()):
            _check_block(model, number, block)
    holders = [(block.get_submodule(bias.holder), bias.subclass) for block in host.blocks for bias in host.biases]
    for module, mixin in (*host.subclasses, *holders):
        if hasattr(mixin, "forward") and has_own_forward(module):
            raise UnsupportedModelError(
                model,
                f"its {host_class(module).__name__} has a forward of its own in its __dict__ (patched by another "
                "tool), which would hide what a merge needs there",
                "insert before that tool",
                "changed",
            )


def _check_block(model: nn.Module, number: int, block: nn.Module) -> None:
    if has_own_forward(block):
        raise UnsupportedModelError(
            model,
            f"block {number} has a forward of its own in its __dict__ (patched by another tool), "
            "which would hide the merger",
            "insert before that tool, or merge after another block",
            "changed",
        )
    taken = [name for name in ("merger", "merge_state") if hasattr(block, name)]
    if taken and not isinstance(block, Subclass):
        raise UnsupportedModelError(
            model,
            f"block {number} has an attribute named {taken[0]!r} already",
            "merge after another block",
            "changed",
        )


def _check_chain(host: Host, wanted: dict[int, int], num_kept_prefix_tokens: int) -> None:
    """No merger may give more tokens than arrive at it, counting those that are there already."""
    arriving = host.num_patches
    if arriving is not None and num_kept_prefix_tokens == 0:
        arriving += host.num_prefix_tokens
    present = {number: state.num_tokens for number, state in present_mergers(host).items()}
    for number, count in sorted((present | wanted).items()):
        if arriving is not None and count > arriving:
            raise ValueError(
                f"num_tokens ({count}) after block {number} is more than the {arriving} tokens that arrive"
            )
        arriving = count


def present_mergers(host: Host) -> dict[int, MergeState]:
    """What each block that merges already does, by its number."""
    return {number: block.merge_state for number, block in enumerate(host.blocks, start=1) if is_merging(block)}
