"""Is a model what its host says? Tried with mergers, and compared with what is observed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal

from torch import Tensor, nn

from patchmerger.census.observe import NotAsDescribedError, ObservedRun, constant_tokens, observe_run
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.example_inputs import Example
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import insert, remove
from patchmerger.mechanism.options import Positions

# Two numbers of tokens, for queries without places and for the default ones. Neither is a grid or divides a usual
# width: no reshape passes by chance.
NUM_TOKENS = (7, 5)


def check_host(model: nn.Module, images: Tensor) -> None:
    """Check the description of a model of one's own by what the model does.

    A description can be wrong in silence: were the class token merged with the patches, say, no error would tell.
    So a copy of the model runs, as it is and with mergers, and is watched from outside.

    Args:
        model: A model described with ``patchmerger.register_host``; it is not changed.
        images: What it takes, one image at least; noise of the same shape runs too.

    Raises:
        NotAsDescribedError: Blocks do not run as described, other tokens arrive at them than the description says,
            or others than the tokens of the prefix are the same for any image; a ``ValueError``.
        UnsupportedModelError: The model cannot take a merger.
    """
    model = copy.deepcopy(model).eval()
    positions, refusal = try_merger(model)
    if refusal is not None and positions is None:
        raise refusal
    observe_model(model, positions, lambda: Example(images[:1]))


def observe_model(
    model: nn.Module,
    positions: Positions | None,
    example: Callable[[], Example],
    prepare: Callable[[nn.Module, Sequence[nn.Module]], None] | None = None,
) -> tuple[ObservedRun, int]:
    """What was seen of the plain model, and the number of its prefix tokens; all else is an error.

    ``example`` makes an input of one image; ``prepare`` gives the model, and its blocks, weights with which images can
    be told apart.
    """
    host = find_host(model)
    before, given = _parts(model), example()
    plain = observe_run(model, list(host.blocks), given)
    if len({*plain.arriving, plain.leaving}) > 1:
        raise NotAsDescribedError(f"the number of tokens changes from block to block: {plain.arriving}")
    num_prefix = _compare(model, plain, given, NUM_TOKENS[0], positions, None)
    _check_parts(model, before, "remove")
    wrong: Exception | None = None
    try:  # prefix tokens that are not as described are the better reason
        _compare(model, plain, given, NUM_TOKENS[1], positions, "auto")
    except Exception as error:
        wrong = error
    _check_parts(model, before, "remove")
    if prepare is not None:
        prepare(model, host.blocks)
    _check_prefix(constant_tokens(model, host.blocks, example()), num_prefix)
    if wrong is not None:
        raise wrong
    patches = plain.arriving[0] - num_prefix
    if host.num_patches not in (None, patches):
        raise NotAsDescribedError(f"num_patches is described as {host.num_patches}, but {patches} tokens are no prefix")
    return plain, num_prefix


def try_merger(model: nn.Module) -> tuple[Positions | None, UnsupportedModelError | None]:
    """The positions that a merger in ``model`` has, and the error without asking for them; the model stays plain."""
    before, refusal = _parts(model), None
    try:
        insert(model, NUM_TOKENS[0])
    except UnsupportedModelError as error:
        _check_parts(model, before, "a refused insert")
        if error.kind != "relative bias":
            return None, error
        refusal = error
        insert(model, NUM_TOKENS[0], positions="drop")
    (merger,) = mergers(model)
    remove(model)
    _check_parts(model, before, "remove")
    return merger.positions, refusal


def _compare(
    model: nn.Module,
    plain: ObservedRun,
    example: Example,
    num_tokens: int,
    positions: Positions | None,
    prior: Literal["auto"] | None,
) -> int:
    """Watch a model with a merger, against what was seen of the ``plain`` one: the prefix tokens that were kept."""
    blocks = list(find_host(model).blocks)
    insert(model, num_tokens, positions=positions, prior=prior)
    (merger,) = mergers(model)
    try:
        run = observe_run(model, blocks, example)
    finally:
        remove(model)
    _check_merged(plain, run, merger.after, merger.num_kept_prefix_tokens, num_tokens)
    return merger.num_kept_prefix_tokens


def _check_merged(plain: ObservedRun, merged: ObservedRun, after: int, num_prefix: int, num_tokens: int) -> None:
    tokens, left = plain.arriving[0], num_prefix + num_tokens
    arriving = (tokens,) * after + (left,) * (len(plain.arriving) - after)
    if (merged.arriving, merged.leaving) != (arriving, left):
        raise NotAsDescribedError(
            f"with a merger to {num_prefix} + {num_tokens} tokens after block {after} the blocks should see "
            f"{arriving}, but see {merged.arriving} and give {merged.leaving}"
        )
    shorter = {tokens: left, tokens - num_prefix: num_tokens}  # sequences in the output, with and without prefix
    for before, now in zip_longest(plain.outputs, merged.outputs):
        wanted = {before}
        if before is not None and len(before) == 3 and before[1] in shorter:
            wanted = {(before[0], shorter[before[1]], before[2])}
        if now not in wanted:
            raise NotAsDescribedError(f"an output of shape {before} becomes {now} with {left} tokens")


def _check_prefix(constant: Sequence[bool], num_prefix: int) -> None:
    """Compare the prefix tokens with those that are the same for any image."""
    if list(constant) != [place < num_prefix for place in range(len(constant))]:
        places = ", ".join(str(place) for place, same in enumerate(constant, start=1) if same)
        raise NotAsDescribedError(
            f"the first {num_prefix} of {len(constant)} tokens are said to be the prefix, but those that are the same "
            f"for any image are {places or 'none'} (counted from 1)"
        )


def _parts(model: nn.Module) -> list[tuple[str, type, tuple[str, ...]]]:
    """All that a merger adds to a model: classes, submodules, attributes."""
    return [(name, type(module), tuple(sorted(vars(module)))) for name, module in model.named_modules()]


def _check_parts(model: nn.Module, before: list[tuple[str, type, tuple[str, ...]]], what: str) -> None:
    if (now := _parts(model)) != before:
        changed = next((a[0] if a else b[0] for a, b in zip_longest(now, before) if a != b), "")
        raise NotAsDescribedError(f"{what} leaves the model changed, first at {changed or 'its root'}")
