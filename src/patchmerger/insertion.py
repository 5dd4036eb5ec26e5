"""Put mergers into a model, and take them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from patchmerger.block_inputs import BlockInputs, Positions, argument_names
from patchmerger.hosts import Host, find_host
from patchmerger.insertion_request import Prefix, checked_request
from patchmerger.merger import Init, Norm
from patchmerger.merging_block import ATTRIBUTES, LaterBlock, MergingBlock, is_merging
from patchmerger.reducers.choose import choose_reducers
from patchmerger.seams import Seam, attach, detach, host_class, modules_with_seam

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
