"""Put mergers into a model, take them out, list them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar, cast

import torch
from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError, find_host
from patchmerger.merger import Init, Norm, PatchMerger
from patchmerger.merging_block import MergingBlock, is_merging
from patchmerger.seams import attach, detach, has_seam, host_class

ModelT = TypeVar("ModelT", bound=nn.Module)
Prefix = Literal["keep", "merge"]


@dataclass(frozen=True)
class InsertedMerger:
    """A merger in a model, and what it does to the tokens.

    Attributes:
        name: Its name in the model, such as ``"blocks.5.merger"``.
        after: The block that it stands after, counted from 1.
        module: The merger itself.
        num_tokens: Tokens it gives, M.
        num_passing_tokens: Prefix tokens that pass by it.
        tokens_before: Tokens that arrive, prefix included; ``None`` where images of several sizes are taken.
        tokens_after: Tokens that go on, prefix included.
    """

    name: str
    after: int
    module: nn.Module = field(repr=False)
    num_tokens: int
    num_passing_tokens: int
    tokens_before: int | None
    tokens_after: int


def insert(
    model: ModelT,
    num_tokens: int | Sequence[int] = 8,
    after: int | Sequence[int] | None = None,
    *,
    prefix: Prefix = "keep",
    norm: Norm = "scores",
    scale: float = 1.0,
    init: Init | None = None,
    reducer: nn.Module | Sequence[nn.Module] | None = None,
) -> ModelT:
    """Put a merger between two blocks of a Vision Transformer, in place.

    From then on the blocks after it see ``num_tokens`` tokens (and the prefix tokens) instead of N. State-dict
    keys stay as they are; the new ones contain ``.merger.``. A merger in a trained model must be trained:
    accuracy drops until then.

    Args:
        model: A supported model; see ``patchmerger.hosts``. Insert before DDP, ``fully_shard`` or
            ``torch.compile`` wrap it.
        num_tokens: Tokens that go on, M. A sequence for several mergers.
        after: The block to merge after, counted from 1, up to depth − 1; by default half the depth, as in the
            paper. A sequence for several mergers.
        prefix: ``"keep"`` lets class, distillation and register tokens pass by untouched; ``"merge"`` merges
            them with the rest, for models whose pooling needs none of them.
        norm: See :class:`~patchmerger.PatchMerger`.
        scale: See :class:`~patchmerger.PatchMerger`.
        init: See :class:`~patchmerger.PatchMerger`.
        reducer: A module (B, N, D) → (B, num_tokens, D) to use in PatchMerger's place, such as
            ``patchmerger.reducers.AveragePool(8)``; a sequence of them for several places.

    Returns:
        ``model`` itself.

    Raises:
        UnsupportedModelError: The model cannot take a merger; nothing was changed.
        ValueError: ``after`` out of range or taken, ``num_tokens`` above the tokens that arrive, sequences of
            unequal lengths, ``prefix="merge"`` where prefix tokens are needed, options that contradict each
            other; nothing was changed.
    """
    host = find_host(model)
    places = _places(host, num_tokens, after)
    passing = _num_passing_tokens(model, host, prefix)
    _check_blocks(model, host, places)
    _check_chain(host, places, passing)
    reducers = _reducers(host, places, passing, norm, scale, init, reducer)

    for (place, tokens), merger in zip(places.items(), reducers, strict=True):
        block = host.blocks[place - 1]
        block.merger = merger.train(block.training)
        attach(block, MergingBlock)
        vars(block).update(num_passing_tokens=passing, num_merged_tokens=tokens)
    if not has_seam(model, host.root_seam):
        attach(model, host.root_seam)
    return model


def remove(model: ModelT) -> ModelT:
    """Take every merger out, in place: classes, state-dict keys and outputs are again those before ``insert``.

    Args:
        model: A model with at least one merger, or one whose merging blocks were cut off since
            (by timm's ``prune_intermediate_layers``, say).

    Returns:
        ``model`` itself.

    Raises:
        ValueError: There is no merger in ``model``.
        UnsupportedModelError: The model was wrapped or sharded since.
        TypeError: Another library changed a class since; nothing was changed.
    """
    host = find_host(model)
    merging = [block for block in host.blocks if is_merging(block)]
    # Where the merging blocks were cut off, the root still has the seam that insert gave it.
    if not merging and not has_seam(model, host.root_seam):
        raise ValueError(f"model ({host_class(model).__name__}) has no merger to remove")
    detach(*cast(list[nn.Module], merging), model)
    for block in merging:
        del block.merger, block.num_passing_tokens, block.num_merged_tokens
    return model


def mergers(model: nn.Module) -> list[InsertedMerger]:
    """List the mergers in a model, first to last; an empty list where there is none.

    Args:
        model: A supported model.

    Raises:
        UnsupportedModelError: The model is not supported, so it cannot hold a merger either.
    """
    host = find_host(model)
    tokens = None if host.num_patches is None else host.num_patches + host.num_prefix_tokens
    found = []
    for place, block in enumerate(host.blocks, start=1):
        if not is_merging(block):
            continue
        tokens_after = block.num_passing_tokens + block.num_merged_tokens
        found.append(
            InsertedMerger(
                name=f"{host.blocks_name}.{place - 1}.merger",
                after=place,
                module=block.merger,
                num_tokens=block.num_merged_tokens,
                num_passing_tokens=block.num_passing_tokens,
                tokens_before=tokens,
                tokens_after=tokens_after,
            )
        )
        tokens = tokens_after
    return found


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


def _check_blocks(model: nn.Module, host: Host, places: dict[int, int]) -> None:
    """Refuse blocks that have a merger already, or where a merger would have no effect."""
    for place in places:
        block = host.blocks[place - 1]
        if is_merging(block):
            raise ValueError(f"after ({place}): there is a merger already; remove(model) takes it out")
        if "forward" in vars(block):
            raise UnsupportedModelError(
                model,
                f"block {place} has a forward of its own in its __dict__ (patched by another tool), "
                "which would hide the merger",
                "insert before that tool, or merge after another block",
            )
        if hasattr(block, "merger"):
            raise UnsupportedModelError(
                model, f"block {place} has an attribute named 'merger' already", "merge after another block"
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


def _reducers(
    host: Host,
    places: dict[int, int],
    passing: int,
    norm: Norm,
    scale: float,
    init: Init | None,
    reducer: nn.Module | Sequence[nn.Module] | None,
) -> list[nn.Module]:
    """The modules to put in, each on its block's device and in its dtype."""
    likes = [_example_parameter(host.blocks[place - 1]) for place in places]
    if reducer is None:
        return [
            PatchMerger(host.dim, count, norm=norm, scale=scale, init=init, device=like.device, dtype=like.dtype)
            for count, like in zip(places.values(), likes, strict=True)
        ]
    if (norm, scale, init) != ("scores", 1.0, None):
        raise ValueError("norm, scale and init are PatchMerger's: they cannot be given together with a reducer")
    given = [reducer] if isinstance(reducer, nn.Module) else list(reducer)
    if len(given) != len(places) or len({id(module) for module in given}) < len(given):
        raise ValueError(f"reducer must be one module for each of the {len(places)} places, none of them twice")
    arriving = (host.num_patches or 4 * max(places.values())) + (0 if passing else host.num_prefix_tokens)
    for module, count, like in zip(given, places.values(), likes, strict=True):
        _check_reducer(module, arriving, count, host.dim)
        module.to(device=like.device, dtype=like.dtype)
        arriving = count
    return given


def _example_parameter(block: nn.Module) -> torch.Tensor:
    return next(p for p in block.parameters() if p.is_floating_point())


def _check_reducer(reducer: nn.Module, arriving: int, num_tokens: int, dim: int) -> None:
    """Try the reducer on one image of zeros; a copy is used, so that the given one keeps its state."""
    like = next(reducer.parameters(), torch.empty(0))
    tokens = torch.zeros(1, arriving, dim, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        merged = copy.deepcopy(reducer).eval()(tokens)
    shape = tuple(merged.shape) if isinstance(merged, torch.Tensor) else type(merged).__name__
    if shape != (1, num_tokens, dim):
        raise ValueError(
            f"reducer ({type(reducer).__name__}) gives {shape} for {arriving} tokens of width {dim}, but "
            f"num_tokens ({num_tokens}) asks for {(1, num_tokens, dim)}"
        )
