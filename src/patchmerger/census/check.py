"""Can this model take a merger? Tried, and held against what is observed, not believed from its description."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal, TypeAlias

from torch import Tensor, nn

from patchmerger.census.observation import NotAsDescribedError, Sighting, constant_tokens, fill_stem, watch
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.example_inputs import Example, example_input
from patchmerger.hosts.host import Refusal
from patchmerger.inserted import mergers
from patchmerger.insertion import insert, remove
from patchmerger.mechanism.options import Positions
from patchmerger.mechanism.subclassing import host_class

Status: TypeAlias = Literal["merged", "refused", "not buildable", "failed"]

# Two numbers of tokens, neither of which is a grid or divides a usual width: no reshape passes by chance.
NUM_TOKENS = (7, 5)


@dataclass(frozen=True)
class Finding:
    """What was found of one architecture.

    Attributes:
        library: The library that makes it.
        name: Its name there.
        family: Its class.
        status: ``"merged"``: the blocks after the merger were seen to get M + prefix tokens. ``"refused"``: by
            ``UnsupportedModelError``. ``"not buildable"``: its library does not make it from its defaults.
            ``"failed"``: anything else.
        kind: The class of the reason why it is refused, with ``positions`` only by default.
        reason: Why it is refused, not buildable or failed.
        way_out: What would do instead, where it is refused.
        positions: What becomes of positions in the blocks after a merger.
        blocks: Number of blocks.
        prefix: Tokens before the patches.
        patches: Patches of an image, N.
    """

    library: str
    name: str
    family: str
    status: Status
    kind: Refusal | None = None
    reason: str | None = None
    way_out: str | None = None
    positions: Positions | None = None
    blocks: int | None = None
    prefix: int | None = None
    patches: int | None = None


def examine(library: str, name: str, build: Callable[[], nn.Module]) -> Finding:
    """Build one architecture and find out whether it takes a merger.

    Args:
        library: The library that makes it.
        name: Its name there.
        build: Makes it on the meta device.
    """
    try:
        model = build().eval()
    except Exception as error:
        return Finding(library, name, "", "not buildable", reason=_in_one_line(error))
    finding = Finding(library, name, host_class(model).__name__, "failed")
    try:
        return _examine(model, finding)
    except Exception as error:
        return replace(finding, reason=_in_one_line(error))


def _examine(model: nn.Module, finding: Finding) -> Finding:
    positions, refusal = _try(model)
    if refusal is not None:
        finding = replace(finding, kind=refusal.kind, reason=refusal.reason, way_out=refusal.way_out)
        if positions is None:
            return replace(finding, status="refused")
    plain, prefix = _observe(model, positions, lambda: example_input(model), prepare=fill_stem)
    patches = plain.arriving[0] - prefix
    if patches != plain.patches:
        raise NotAsDescribedError(
            f"{patches} tokens follow the {prefix} of its prefix, but it cuts an image into {plain.patches} patches"
        )
    blocks = len(plain.arriving)
    return replace(finding, status="merged", positions=positions, blocks=blocks, prefix=prefix, patches=patches)


def check_host(model: nn.Module, images: Tensor) -> None:
    """Hold the description of a model of one's own against what the model does.

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
    positions, refusal = _try(model)
    if refusal is not None and positions is None:
        raise refusal
    _observe(model, positions, lambda: Example(images[:1]))


def _observe(
    model: nn.Module,
    positions: Positions | None,
    example: Callable[[], Example],
    prepare: Callable[[nn.Module, Sequence[nn.Module]], None] | None = None,
) -> tuple[Sighting, int]:
    """What was seen of the plain model, and the number of its prefix tokens; all else is an error.

    Args:
        model: A model that takes a merger.
        positions: As for ``insert``.
        example: Makes an input of one image.
        prepare: Gives the model, and its blocks, weights with which images can be told apart.
    """
    host = find_host(model)
    plain, passing = _compare(model, example(), positions)
    if prepare is not None:
        prepare(model, host.blocks)
    _check_prefix(constant_tokens(model, host.blocks, example()), passing)
    patches = plain.arriving[0] - passing
    if host.num_patches not in (None, patches):
        raise NotAsDescribedError(f"num_patches is said to be {host.num_patches}, but {patches} tokens are no prefix")
    return plain, passing


def _try(model: nn.Module) -> tuple[Positions | None, UnsupportedModelError | None]:
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


def _compare(model: nn.Module, example: Example, positions: Positions | None) -> tuple[Sighting, int]:
    """Watch a model as it is and with mergers of several sizes; the plain one, and the tokens that passed by."""
    blocks, before = list(find_host(model).blocks), _parts(model)
    plain = watch(model, blocks, example)
    if len({*plain.arriving, plain.leaving}) > 1:
        raise NotAsDescribedError(f"the number of tokens changes from block to block: {plain.arriving}")
    passing = 0
    for num_tokens in NUM_TOKENS:
        insert(model, num_tokens, positions=positions)
        (merger,) = mergers(model)
        passing = merger.num_kept_prefix_tokens
        _check_merged(plain, watch(model, blocks, example), merger.after, passing, num_tokens)
        remove(model)
        _check_parts(model, before, "remove")
    return plain, passing


def _check_merged(plain: Sighting, merged: Sighting, after: int, passing: int, num_tokens: int) -> None:
    tokens, left = plain.arriving[0], passing + num_tokens
    arriving = (tokens,) * after + (left,) * (len(plain.arriving) - after)
    if (merged.arriving, merged.leaving) != (arriving, left):
        raise NotAsDescribedError(
            f"with a merger to {passing} + {num_tokens} tokens after block {after} the blocks should see {arriving}, "
            f"but see {merged.arriving} and give {merged.leaving}"
        )
    shorter = {tokens: left, tokens - passing: num_tokens}  # sequences in the output, with and without prefix
    for before, now in zip_longest(plain.outputs, merged.outputs):
        wanted = {before}
        if before is not None and len(before) == 3 and before[1] in shorter:
            wanted = {(before[0], shorter[before[1]], before[2])}
        if now not in wanted:
            raise NotAsDescribedError(f"an output of shape {before} becomes {now} with {left} tokens")


def _check_prefix(constant: Sequence[bool], passing: int) -> None:
    """Hold the tokens that pass by a merger against those that are the same for any image."""
    if list(constant) != [place < passing for place in range(len(constant))]:
        places = ", ".join(str(place) for place, same in enumerate(constant, start=1) if same)
        raise NotAsDescribedError(
            f"the first {passing} of {len(constant)} tokens are said to be the prefix, but those that are the same for "
            f"any image are {places or 'none'} (counted from 1)"
        )


def _parts(model: nn.Module) -> list[tuple[str, type, tuple[str, ...]]]:
    """All that a merger adds to a model: classes, submodules, attributes."""
    return [(name, type(module), tuple(sorted(vars(module)))) for name, module in model.named_modules()]


def _check_parts(model: nn.Module, before: list[tuple[str, type, tuple[str, ...]]], what: str) -> None:
    if (now := _parts(model)) != before:
        changed = next((a[0] if a else b[0] for a, b in zip_longest(now, before) if a != b), "")
        raise NotAsDescribedError(f"{what} leaves the model changed, first at {changed or 'its root'}")


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"
