"""Put mergers into a model, and take them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError, find_host
from patchmerger.inserted import mergers
from patchmerger.mechanism.block_inputs import BlockInputs, Positions, argument_names
from patchmerger.mechanism.blocks import ATTRIBUTES, LaterBlock, MergingBlock, is_merging
from patchmerger.mechanism.subclassing import (
    Seam,
    attach,
    detach,
    has_own_forward,
    has_seam,
    host_class,
    modules_with_seam,
)
from patchmerger.merger import Init, Norm
from patchmerger.reducers.build import choose_reducers

ModelT = TypeVar("ModelT", bound=nn.Module)


def insert(
    model: ModelT,
    num_tokens: int | Sequence[int] = 8,
    after: int | Sequence[int] | None = None,
    *,
    prefix: Prefix = "keep",
    positions: Positions | None = None,
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
        model: A supported model; ``patchmerger hosts`` lists them. Insert before DDP, ``fully_shard`` or
            ``torch.compile`` wrap it.
        num_tokens: Tokens that go on, M. A sequence for several mergers.
        after: The block to merge after, counted from 1, up to depth − 1; by default half the depth, as in the
            paper. A sequence for several mergers.
        prefix: ``"keep"`` lets class, distillation and register tokens pass by untouched; ``"merge"`` merges
            them with the rest, for models whose pooling needs none of them.
        positions: For models that tell each block where the tokens are. With rotary positions (RoPE) ``"centroid"``,
            the default, gives each merged token the centroid of the patches in it, Σ A (row, column), image by image;
            ``"none"`` gives none. A relative position bias has no value for a merged token: only ``"drop_bias"``,
            which leaves it out of the blocks after the merge, is taken there.
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
            unequal lengths, ``prefix="merge"`` where prefix tokens are needed, ``positions`` that the model has no
            use for, options that contradict each other; nothing was changed.
    """
    host = find_host(model)
    request = checked_request(model, host, num_tokens=num_tokens, after=after, prefix=prefix, positions=positions)
    reducers = choose_reducers(
        host,
        request.places,
        passing=request.passing,
        positions=request.positions,
        norm=norm,
        scale=scale,
        init=init,
        reducer=reducer,
    )

    for (place, tokens), merger in zip(request.places.items(), reducers, strict=True):
        block = host.blocks[place - 1]
        block.merger = merger.train(block.training)
        vars(block)["num_merged_tokens"] = tokens
    _place_seams(host, request.passing, request.positions)
    return model


def _place_seams(host: Host, passing: int, positions: Positions | None) -> None:
    """Give each block from the first merge on the seam that it needs, and those parts that must know of a merge."""
    merging = ["num_merged_tokens" in vars(block) for block in host.blocks]
    first = merging.index(True)
    for block in host.blocks[first:]:
        is_first = block is host.blocks[first]
        seam: type[Seam] = MergingBlock if "num_merged_tokens" in vars(block) else LaterBlock
        if positions == "drop_bias" and not is_first:
            for bias in host.biases:
                _give_seam(block.get_submodule(bias.holder), bias.seam)
        if seam is LaterBlock and host.inputs == BlockInputs():
            continue
        _give_seam(block, seam)
        vars(block).update(
            block_inputs=host.inputs,
            input_names=argument_names(block),
            merge_positions=positions,
            after_merge=not is_first,
            num_passing_tokens=passing,
            num_expected_tokens=_expected(host) if is_first else None,
        )
    for module, its_seam in host.seams:
        _give_seam(module, its_seam)


def _expected(host: Host) -> int | None:
    """Tokens that must arrive at the first merger, where they are counted."""
    return host.num_prefix_tokens + host.num_patches if host.counted and host.num_patches is not None else None


def _give_seam(module: nn.Module, seam: type[Seam]) -> None:
    if type(module).__mro__[1] is seam:
        return
    if isinstance(module, Seam):
        detach(module)
    attach(module, seam)


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
    find_host(model)
    changed = modules_with_seam(model)
    if not changed:
        raise ValueError(f"model ({host_class(model).__name__}) has no merger to remove")
    merging = [module for module in changed if is_merging(module)]
    detach(*changed)
    for block in merging:
        del block.merger
    for module in changed:
        for name in ATTRIBUTES:
            vars(module).pop(name, None)
    return model


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
