"""Put mergers into a model, and take them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError, find_host
from patchmerger.hosts.attention import block_parts
from patchmerger.hosts.state import refuse_adapters, unsupported_state
from patchmerger.insertion.request import InsertionRequest, checked_request, num_tokens_kept, present_mergers
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.blocks import LaterBlock, MergeState, MergingBlock, is_merging, works_inside
from patchmerger.mechanism.options import Norm, Positions, Prefix, Prior
from patchmerger.mechanism.patch_grid import PatchGrid
from patchmerger.mechanism.subclassing import (
    argument_names,
    attach,
    detach,
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
    prior: Prior | Literal["auto"] | None = "auto",
    num_heads: int = 1,
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
            patches, of images of the model's own size, the i-th leaves ``int(N · keep_rate^i)``; behind a merger that
            the model has already, N are its tokens.
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
        prior: ``"grid"`` or ``"rows"`` for located queries, which know where in the image each patch is (see
            :class:`~patchmerger.PatchMerger`); a merger after another one is given the centroids of merged tokens.
            ``None`` for queries without places, as in the paper. ``"auto"``, the default, is ``preset("located")``
            where the model's patches have a known grid, prefix tokens are kept, mergers before tell their weights, and
            neither norm nor scale nor init is given; else ``None``.
        num_heads: See :class:`~patchmerger.PatchMerger`: for training from scratch.

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
        num_tokens = num_tokens_kept(model, host, num_tokens=num_tokens, after=after, keep_rate=keep_rate)
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
        num_heads=num_heads,
        reducer=reducer,
    )

    for after_block, merger in zip(request.num_tokens, reducers, strict=True):
        block = host.blocks[after_block - 1]
        block.merger = merger.train(block.training)
    _subclass_blocks(host, request)
    return model


def _subclass_blocks(host: Host, request: InsertionRequest) -> None:
    """Subclass each block from the first merge on that needs it, and those parts that must know of a merge."""
    num_tokens = {number: state.num_tokens for number, state in present_mergers(host).items()} | request.num_tokens
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
        places_are_needed = number < last_located or (after_merge and number in located)
        sizes_are_needed = bool(sized)  # from the first merge on, though one that gives none may come before
        travels = request.positions == "centroid" or places_are_needed or sizes_are_needed
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
            places_are_needed=places_are_needed,
            sizes_are_needed=sizes_are_needed,
            parts=block_parts(block) if sizes_are_needed or number in inside else None,
        )
    for module, mixin in host.subclasses:
        attach(module, mixin)


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
