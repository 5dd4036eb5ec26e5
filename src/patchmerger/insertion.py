"""Put mergers into a model, and take them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast, get_args

from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError, find_host
from patchmerger.hosts.attention import block_parts
from patchmerger.hosts.state import unsupported_state
from patchmerger.hosts.wrappers import refuse_adapters
from patchmerger.inserted import mergers
from patchmerger.mechanism.block_inputs import BlockInputs, argument_names
from patchmerger.mechanism.blocks import LaterBlock, MergeState, MergingBlock, is_merging, works_inside
from patchmerger.mechanism.options import Norm, Positions, Prefix, Prior
from patchmerger.mechanism.patch_grid import PatchGrid
from patchmerger.mechanism.subclassing import (
    Subclass,
    attach,
    detach,
    has_own_forward,
    host_class,
    subclassed_modules,
)
from patchmerger.merger import Init
from patchmerger.reducers.build import all_work_inside, choose_reducers, needs_positions
from patchmerger.reducers.names import ReducerName

ModelT = TypeVar("ModelT", bound=nn.Module)


def insert(
    model: ModelT,
    num_tokens: int | Sequence[int] | None = None,
    after: int | Sequence[int] | None = None,
    *,
    keep_rate: float | None = None,
    reducer: ReducerName | nn.Module | Sequence[nn.Module] = "patchmerger",
    prefix: Prefix = "keep",
    positions: Positions | None = None,
    norm: Norm = "scores",
    scale: float = 1.0,
    init: Init | None = None,
    prior: Prior | None = None,
) -> ModelT:
    """Put a merger between two blocks of a Vision Transformer, in place.

    From then on the blocks after it see ``num_tokens`` tokens (and the prefix tokens) instead of N. State-dict
    keys stay as they are; the new ones contain ``.merger.``. A merger with parameters in a trained model must be
    trained: accuracy drops until then.

    Args:
        model: A supported model; ``patchmerger hosts`` lists them. Insert before DDP, ``fully_shard`` or
            ``torch.compile`` wrap it.
        num_tokens: Tokens that go on, M; 8 by default, as in the paper. A sequence for several mergers.
        after: The block to merge after, counted from 1, up to depth − 1; by default half the depth, as in the
            paper. A sequence for several mergers. Methods that work inside a block (ToMe, Top-K, EViT, ATS) merge
            between its attention and its MLP, in the last block too.
        keep_rate: In place of ``num_tokens`` the share of tokens that each merger keeps, above 0 and up to 1: of N
            patches the i-th leaves ``int(N · keep_rate^i)``.
        reducer: The method, by its name in ``patchmerger.reducers.METHODS``; or a module (B, N, D) →
            (B, num_tokens, D), such as ``patchmerger.reducers.AveragePool(8)``, a sequence of them for several places.
        prefix: ``"keep"`` leaves class, distillation and register tokens as they are; ``"merge"`` merges
            them with the rest, for models whose pooling needs none of them.
        positions: For models that tell each block where the tokens are. With rotary positions (RoPE) ``"centroid"``,
            the default, gives each merged token the centroid of the patches in it, Σ A (row, column), image by image;
            ``"drop"`` gives none. A relative position bias has no value for a merged token: only ``"drop"``, which
            leaves it out of the blocks after the merge, is taken there.
        norm: See :class:`~patchmerger.PatchMerger`.
        scale: See :class:`~patchmerger.PatchMerger`.
        init: See :class:`~patchmerger.PatchMerger`.
        prior: ``"grid"`` for located queries, which know where in the image each patch is (see
            :class:`~patchmerger.PatchMerger`); a merger after another one is given the centroids of merged tokens.

    Returns:
        ``model`` itself.

    Raises:
        UnsupportedModelError: The model cannot take a merger; nothing was changed.
        ValueError: ``after`` out of range or taken, ``num_tokens`` above the tokens that arrive, sequences of
            unequal lengths, ``prefix="merge"`` where prefix tokens are needed, ``positions`` that the model has no
            use for, a ``prior`` for a model whose patches have no known grid, options that contradict each other;
            nothing was changed.
    """
    host = find_host(model)
    refuse_adapters(model)
    state = unsupported_state(model, meta=True)
    if state is not None:
        raise UnsupportedModelError(model, *state, "changed")
    if keep_rate is not None:
        num_tokens = _num_tokens_kept(host, num_tokens, after, keep_rate)
    request = checked_request(
        model,
        host,
        num_tokens=8 if num_tokens is None else num_tokens,
        after=after,
        prefix=prefix,
        positions=positions,
        inside_blocks=all_work_inside(reducer),
    )
    reducers = choose_reducers(
        model,
        host,
        request.num_tokens,
        num_kept_prefix_tokens=request.num_kept_prefix_tokens,
        positions=request.positions,
        norm=norm,
        scale=scale,
        init=init,
        prior=prior,
        reducer=reducer,
    )

    for after_block, merger in zip(request.num_tokens, reducers, strict=True):
        block = host.blocks[after_block - 1]
        block.merger = merger.train(block.training)
    _subclass_blocks(host, request)
    return model


def _subclass_blocks(host: Host, request: InsertionRequest) -> None:
    """Subclass each block from the first merge on that needs it, and those parts that must know of a merge."""
    num_tokens = _present_mergers(host) | request.num_tokens
    first = min(num_tokens)
    reducers = {number: cast(nn.Module, host.blocks[number - 1].merger) for number in num_tokens}
    located = [number for number, reducer in reducers.items() if needs_positions(reducer)]
    sized = [number for number, reducer in reducers.items() if getattr(reducer, "gives_sizes", False)]
    inside = [number for number, reducer in reducers.items() if works_inside(reducer)]
    last_located = max(located, default=0)
    for number, block in enumerate(host.blocks[first - 1 :], start=first):
        after_merge = number > first
        if request.positions == "drop" and after_merge:
            for bias in host.biases:
                attach(block.get_submodule(bias.holder), bias.subclass)
        weights_are_needed = (
            request.positions == "centroid" or number < last_located or (after_merge and number in located)
        )
        sizes_are_needed = any(place <= number for place in sized)
        travels = weights_are_needed or sizes_are_needed
        if number not in num_tokens and host.inputs == BlockInputs() and not travels:
            continue
        attach(block, MergingBlock if number in num_tokens else LaterBlock)
        block.merge_state = MergeState(  # type: ignore[assignment]
            inputs=host.inputs,
            argument_names=argument_names(block),
            positions=request.positions,
            after_merge=after_merge,
            num_kept_prefix_tokens=request.num_kept_prefix_tokens,
            num_tokens=num_tokens.get(number, 0),
            num_patches=host.num_patches,
            sequence_first=host.sequence_first,
            num_expected_tokens=None if after_merge else host.num_expected_tokens,
            grid=None if after_merge or not located else PatchGrid(None if host.grid == "varies" else host.grid),
            weights_are_needed=weights_are_needed,
            sizes_are_needed=sizes_are_needed,
            parts=block_parts(block) if sizes_are_needed or number in inside else None,
        )
    for module, mixin in host.subclasses:
        attach(module, mixin)


def _present_mergers(host: Host) -> dict[int, int]:
    """The tokens that go on after each block that merges already."""
    return {i: b.merge_state.num_tokens for i, b in enumerate(host.blocks, start=1) if is_merging(b)}


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
    refuse_adapters(model)
    changed = subclassed_modules(model)
    if not changed:
        raise ValueError(f"model ({host_class(model).__name__}) has no merger to remove")
    merging = [module for module in changed if is_merging(module)]
    detach(*changed)
    for block in merging:
        del block.merger
    for module in changed:
        vars(module).pop("merge_state", None)
    return model


@dataclass(frozen=True)
class InsertionRequest:
    """A merger to put in, known to fit the model.

    Attributes:
        num_tokens: The tokens that go on after each block to merge after (counted from 1), in order.
        num_kept_prefix_tokens: Prefix tokens that the mergers leave as they are.
        positions: What merged tokens have in place of positions; ``None`` where the blocks know of none.
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
    num_kept = _num_kept_prefix_tokens(model, host, prefix)
    positions = _positions(model, host, positions)
    _check_blocks(model, host, wanted)
    _check_chain(host, wanted, num_kept)
    return InsertionRequest(wanted, num_kept, positions)


def _num_tokens_kept(
    host: Host, num_tokens: int | Sequence[int] | None, after: int | Sequence[int] | None, keep_rate: float
) -> list[int] | int:
    """The tokens that go on after each merger where each keeps a share of them."""
    if num_tokens is not None:
        raise ValueError(f"num_tokens ({num_tokens}) and keep_rate ({keep_rate}) both say how many go on: give one")
    if not (isinstance(keep_rate, float | int) and 0 < keep_rate <= 1):
        raise ValueError(f"keep_rate ({keep_rate!r}) must be above 0 and at most 1: 0.5, say")
    if host.num_patches is None:
        raise ValueError(
            f"keep_rate ({keep_rate}) cannot be turned into tokens: the model takes images of several sizes; give "
            "num_tokens"
        )
    places = after if isinstance(after, Sequence) else (0,)
    if not all(type(place) is int for place in places):
        return 1  # such blocks are refused next
    counts = [int(host.num_patches * keep_rate ** (1 + sorted(places).index(place))) for place in places]
    if min(counts, default=1) < 1:
        raise ValueError(f"keep_rate ({keep_rate}) leaves no token of {host.num_patches} after {len(places)} mergers")
    return counts if isinstance(after, Sequence) else counts[0]


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


def _num_kept_prefix_tokens(model: nn.Module, host: Host, prefix: Prefix) -> int:
    """Prefix tokens that a merger leaves as they are with this ``prefix``."""
    if prefix not in ("keep", "merge"):
        raise ValueError(f"prefix ({prefix!r}) must be 'keep' or 'merge'")
    if prefix == "merge" and host.prefix_is_needed:
        raise ValueError(f"prefix ('merge') would merge tokens that are needed: {host.prefix_is_needed}; use 'keep'")
    num_kept = host.num_prefix_tokens if prefix == "keep" else 0
    for present in mergers(model):
        if present.num_kept_prefix_tokens != num_kept:
            raise ValueError(f"prefix ({prefix!r}) must be the same as that of {present.name}, which is there already")
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
    for present in mergers(model):
        if present.positions != positions:
            raise ValueError(
                f"positions ({positions!r}) must be those of {present.name}, which is there already "
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
    for number, count in sorted((_present_mergers(host) | wanted).items()):
        if arriving is not None and count > arriving:
            raise ValueError(
                f"num_tokens ({count}) after block {number} is more than the {arriving} tokens that arrive"
            )
        arriving = count
