"""What ``insert`` is asked for, held against the model before anything in it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from patchmerger.block_inputs import BlockInputs, Positions
from patchmerger.hosts import Host, UnsupportedModelError
from patchmerger.inserted import mergers
from patchmerger.merging_block import ATTRIBUTES, is_merging
from patchmerger.seams import Seam, has_own_forward, has_seam, host_class

Prefix = Literal["keep", "merge"]


@dataclass(frozen=True)
class InsertionRequest:
    """A merger to put in, known to fit the model.

    Attributes:
        places: The tokens that go on after each block to merge after (counted from 1), in order.
        passing: Prefix tokens that pass by the mergers.
        positions: What becomes of positions after them; ``None`` where the blocks know of none.
    """

    places: dict[int, int]
    passing: int
    positions: Positions | None


def checked_request(
    model: nn.Module,
    host: Host,
    *,
    num_tokens: int | Sequence[int],
    after: int | Sequence[int] | None,
    prefix: Prefix,
    positions: Positions | None,
) -> InsertionRequest:
    """Check what ``insert`` is asked for and fill in its defaults; nothing in the model changes.

    The arguments and what is raised are those of :func:`patchmerger.insert`.
    """
    places = _places(host, num_tokens, after)
    passing = _num_passing_tokens(model, host, prefix)
    positions = _positions(model, host, positions)
    _check_blocks(model, host, places)
    _check_chain(host, places, passing)
    return InsertionRequest(places, passing, positions)


def _places(host: Host, num_tokens: int | Sequence[int], after: int | Sequence[int] | None) -> dict[int, int]:
    """The tokens that go on after each block to merge after, in order."""
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
    places = list(after) if isinstance(after, Sequence) else [after]
    counts = list(num_tokens) if isinstance(num_tokens, Sequence) else [num_tokens] * len(places)
    if len(places) != len(counts) or not places:
        raise ValueError(f"after ({places}) and num_tokens ({counts}) must be equally long and not empty")
    for place, count in zip(places, counts, strict=True):
        if type(place) is not int or not 1 <= place < depth:
            raise ValueError(
                f"after ({place!r}) must be a block from 1 to {depth - 1}: the model has {depth} blocks, "
                "counted from 1, and at least one must follow the merger"
            )
        if type(count) is not int or count < 1:
            raise ValueError(f"num_tokens ({count!r}) must be a whole number of at least 1; the paper uses 8")
    if len(set(places)) < len(places):
        raise ValueError(f"after ({places}) names a block twice")
    return dict(sorted(zip(places, counts, strict=True)))


def _num_passing_tokens(model: nn.Module, host: Host, prefix: Prefix) -> int:
    """Tokens that pass by a merger with this ``prefix``."""
    if prefix not in ("keep", "merge"):
        raise ValueError(f"prefix ({prefix!r}) must be 'keep' or 'merge'")
    if prefix == "merge" and host.prefix_is_needed:
        raise ValueError(f"prefix ('merge') would merge tokens that are needed: {host.prefix_is_needed}; use 'keep'")
    passing = host.num_prefix_tokens if prefix == "keep" else 0
    for present in mergers(model):
        if present.num_passing_tokens != passing:
            raise ValueError(f"prefix ({prefix!r}) must be the same as that of {present.name}, which is there already")
    return passing


def _positions(model: nn.Module, host: Host, positions: Positions | None) -> Positions | None:
    """What becomes of positions after a merge: as asked, or the default for this host."""
    if positions not in (None, "centroid", "none", "drop_bias"):
        raise ValueError(f"positions ({positions!r}) must be 'centroid', 'none' or 'drop_bias'")
    if host.biases or host.inputs.bias:
        if positions is None:
            raise UnsupportedModelError(
                model,
                "its blocks add a relative position bias, which has no value for a merged token",
                "positions='drop_bias' leaves the bias out of the blocks after the merge",
                "relative bias",
            )
        if positions != "drop_bias":
            raise ValueError(
                f"positions ({positions!r}) means nothing here: {host_class(model).__name__} has a relative position "
                "bias; 'drop_bias' leaves it out of the blocks after the merge"
            )
    elif host.inputs.rope is not None:
        if positions == "drop_bias":
            raise ValueError(
                f"positions ('drop_bias') means nothing here: {host_class(model).__name__} has rotary positions and no "
                "relative position bias; choose 'centroid' or 'none'"
            )
        positions = positions or "centroid"
        if positions == "centroid" and host.no_centroid:
            raise ValueError(f"positions ('centroid') cannot be had: {host.no_centroid}, or choose 'none'")
    elif positions is not None:
        raise ValueError(
            f"positions ({positions!r}) means nothing here: the blocks of {host_class(model).__name__} are given no "
            "positions; leave it out"
        )
    for present in mergers(model):
        if present.positions != positions:
            raise ValueError(
                f"positions ({positions!r}) must be those of {present.name}, which is there already "
                f"({present.positions!r})"
            )
    return positions


def _check_blocks(model: nn.Module, host: Host, places: dict[int, int]) -> None:
    """Refuse blocks that have a merger already, or where a seam would have no effect."""
    for place, block in enumerate(host.blocks, start=1):
        if place in places and is_merging(block):
            raise ValueError(f"after ({place}): there is a merger already; remove(model) takes it out")
        if place in places or (place > min(places) and host.inputs != BlockInputs()):
            _check_block(model, place, block)
    holders = [(block.get_submodule(bias.holder), bias.seam) for block in host.blocks for bias in host.biases]
    for module, seam in (*host.seams, *holders):
        if hasattr(seam, "forward") and has_own_forward(module):
            raise UnsupportedModelError(
                model,
                f"its {host_class(module).__name__} has a forward of its own in its __dict__ (patched by another "
                "tool), which would hide what a merge needs there",
                "insert before that tool",
                "changed",
            )


def _check_block(model: nn.Module, place: int, block: nn.Module) -> None:
    if has_own_forward(block):
        raise UnsupportedModelError(
            model,
            f"block {place} has a forward of its own in its __dict__ (patched by another tool), "
            "which would hide the merger",
            "insert before that tool, or merge after another block",
            "changed",
        )
    taken = [] if has_seam(block, Seam) else [name for name in ("merger", *ATTRIBUTES) if hasattr(block, name)]
    if taken:
        raise UnsupportedModelError(
            model,
            f"block {place} has an attribute named {taken[0]!r} already",
            "merge after another block",
            "changed",
        )


def _check_chain(host: Host, places: dict[int, int], passing: int) -> None:
    """No merger may give more tokens than arrive at it, counting those that are there already."""
    counts = {i: block.num_merged_tokens for i, block in enumerate(host.blocks, start=1) if is_merging(block)}
    arriving = host.num_patches
    if arriving is not None and passing == 0:
        arriving += host.num_prefix_tokens
    for place, count in sorted((counts | places).items()):
        if arriving is not None and count > arriving:
            raise ValueError(f"num_tokens ({count}) after block {place} is more than the {arriving} tokens that arrive")
        arriving = count
