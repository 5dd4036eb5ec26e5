"""The modules that ``insert`` puts in: new ones by the name of a method, or reducers that were given, tried out."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from patchmerger.hosts import Host
from patchmerger.mechanism.blocks import is_merging, needs_of, works_inside
from patchmerger.mechanism.options import Norm, Positions, Prior
from patchmerger.mechanism.subclassing import host_class
from patchmerger.merger import Init, PatchMerger
from patchmerger.presets import preset
from patchmerger.reducers.attention_check import check_attention
from patchmerger.reducers.names import ReducerName, check_reducer_name, make_reducer, reducer_class


def choose_reducers(
    model: nn.Module,
    host: Host,
    num_tokens: dict[int, int],
    *,
    num_kept_prefix_tokens: int,
    positions: Positions | None,
    norm: Norm,
    scale: float,
    init: Init | None,
    prior: Prior | Literal["auto"] | None,
    num_heads: int,
    reducer: ReducerName | nn.Module | Sequence[nn.Module],
) -> list[nn.Module]:
    """The modules to put into a model, one for each block to merge after, each on its block's device and in its dtype.

    ``num_tokens`` go on after each block by its number. A reducer is the name of a method, or modules in PatchMerger's
    place, which has the options before it; ``positions`` by centroids need to know the weights A.

    Raises:
        ValueError: A reducer gives another shape than asked for, cannot do what the model needs, or stands beside
            PatchMerger's options.
    """
    likes = [next(p for p in host.blocks[n - 1].parameters() if p.is_floating_point()) for n in num_tokens]
    if isinstance(reducer, str):
        check_reducer_name(reducer)
    options: dict[str, Any] = {"norm": norm, "scale": scale, "init": init, "prior": prior}
    free = (norm, scale, init, prior) == ("scores", 1.0, None, "auto")
    if reducer == "patchmerger":
        present, last = _present_mergers(host), max(num_tokens)
        if free and _why_without_places(model, host, num_kept_prefix_tokens, present, last) is None:
            options = preset("located", host.dim)
        elif prior == "auto":
            options["prior"] = None
        reducers: list[nn.Module] = [
            PatchMerger(host.dim, count, **options, num_heads=num_heads, device=like.device, dtype=like.dtype)
            for count, like in zip(num_tokens.values(), likes, strict=True)
        ]
        _check_places(model, host, num_kept_prefix_tokens, dict(zip(num_tokens, reducers, strict=True)))
        return reducers
    if (norm, scale, init) != ("scores", 1.0, None) or prior not in (None, "auto"):
        raise ValueError("norm, scale, init and prior are PatchMerger's: they cannot be given together with a reducer")
    arriving = host.num_patches or 4 * max(num_tokens.values())
    if num_kept_prefix_tokens == 0:
        arriving += host.num_prefix_tokens
    if isinstance(reducer, str):
        arguments = {} if num_heads == 1 else {"num_heads": num_heads}
        given = _made(reducer, host, num_tokens, arriving if host.num_patches else None, arguments)
    elif num_heads != 1:
        raise ValueError(f"num_heads ({num_heads}) is for reducers by name: make the modules with it")
    else:
        given = _modules(reducer)
    if len(given) != len(num_tokens) or len({id(module) for module in given}) < len(given):
        raise ValueError(
            f"reducer must be one module for each of the {len(num_tokens)} blocks to merge after, none of them twice"
        )
    _check_places(model, host, num_kept_prefix_tokens, dict(zip(num_tokens, given, strict=True)))
    check_attention(model, host, num_kept_prefix_tokens, dict(zip(num_tokens, given, strict=True)))
    for module, count, like in zip(given, num_tokens.values(), likes, strict=True):
        _check_abilities(module, positions == "centroid", host.inputs.padding is not None)
        _check_shape(module, arriving, count, host.dim)
        module.to(device=like.device, dtype=like.dtype)
        arriving = count
    return given


def _made(
    name: ReducerName, host: Host, num_tokens: dict[int, int], arriving: int | None, arguments: dict[str, Any]
) -> list[nn.Module]:
    """New reducers of one method, first to last."""
    grid = host.grid if isinstance(host.grid, tuple) else None
    made = []
    for count in num_tokens.values():
        made.append(make_reducer(name, count, dim=host.dim, num_patches=arriving, grid=grid, **arguments))
        arriving, grid = count, None
    return made


def _check_places(model: nn.Module, host: Host, num_kept_prefix_tokens: int, reducers: dict[int, nn.Module]) -> None:
    """Refuse a merger that must know where tokens are, where the model or a merger before it does not say."""
    present = _present_mergers(host) | reducers
    located = [number for number, merger in present.items() if needs_positions(merger)]
    if located:
        reason = _why_without_places(model, host, num_kept_prefix_tokens, present, last=max(located))
        if reason is not None:
            raise ValueError(f"{_what_asks_for_places([present[number] for number in located])} {reason}")


def _why_without_places(
    model: nn.Module, host: Host, num_kept_prefix_tokens: int, present: dict[int, nn.Module], last: int
) -> str | None:
    """Why a merger after block ``last`` cannot know where tokens are, behind those that are ``present``, and the cure.

    ``None`` where it can.
    """
    name = host_class(model).__name__
    if host.grid is None:
        return (
            f"needs the grid of patches, and none is known of {name}: leave it out, or say the grid in "
            "grid= of the Host that register_host is given"
        )
    if num_kept_prefix_tokens < host.num_prefix_tokens:
        return (
            f"cannot go with prefix='merge': the {host.num_prefix_tokens} prefix tokens of {name} have "
            "no place in the image; use prefix='keep'"
        )
    for number, merger in present.items():
        if number < last and "return_weights" not in inspect.signature(merger.forward).parameters:
            return (
                f"after block {last} needs to know where merged tokens come from, but the "
                f"reducer after block {number} ({type(merger).__name__}) has no return_weights in its forward: give "
                "it one that returns (Y, A), or insert PatchMerger with prior=None"
            )
    return None


def _present_mergers(host: Host) -> dict[int, nn.Module]:
    return {number: block.merger for number, block in enumerate(host.blocks, start=1) if is_merging(block)}


def _what_asks_for_places(reducers: Sequence[nn.Module]) -> str:
    """The argument that a reducer which must know places comes from."""
    others = [type(reducer).__name__ for reducer in reducers if not isinstance(reducer, PatchMerger)]
    return f"reducer ({others[0]})" if others else "prior ('grid')"


def needs_positions(reducer: nn.Module) -> bool:
    """Whether a reducer's forward must be given where the tokens are, as ``positions``."""
    return "positions" in needs_of(reducer)


def all_work_inside(reducer: ReducerName | nn.Module | Sequence[nn.Module]) -> bool:
    """Whether what ``insert`` is given works between the attention and the MLP of a block."""
    if isinstance(reducer, str):
        check_reducer_name(reducer)
        return bool(getattr(reducer_class(reducer), "inside_block", False))
    return all(works_inside(module) for module in _modules(reducer))


def _modules(reducer: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    """The modules that ``insert`` is given in the place of a name: one, or a sequence or ``ModuleList`` of them.

    Raises:
        TypeError: Something else.
    """
    given = list(reducer) if isinstance(reducer, Sequence | nn.ModuleList) else [reducer]
    found = [module for module in given if isinstance(module, nn.Module)]
    if len(found) < len(given):
        raise TypeError(f"reducer ({reducer!r}) must be the name of a method, a module, or a sequence of modules")
    return found


def _check_abilities(reducer: nn.Module, centroid: bool, padding: bool) -> None:
    """Refuse a reducer that cannot tell its weights, or cannot leave padding out, where the model needs it."""
    name, can = type(reducer).__name__, inspect.signature(reducer.forward).parameters
    if centroid and "return_weights" not in can:
        raise ValueError(
            f"reducer ({name}) has no return_weights in its forward, so merged tokens have no centroid: give it one "
            "that returns (Y, A), or choose positions='drop'"
        )
    if padding and "mask" not in can:
        raise ValueError(
            f"reducer ({name}) has no mask in its forward, but this model's batches hold padding, which must not be "
            "merged: give it one, (B, N) with True = a real token"
        )


def _check_shape(reducer: nn.Module, arriving: int, num_tokens: int, dim: int) -> None:
    """Try the reducer on one image of zeros; a copy is used, so that the given one keeps its state."""
    like = next(reducer.parameters(), torch.empty(0))
    tokens = torch.zeros(1, arriving, dim, device=like.device, dtype=like.dtype)
    given = {need: tokens.new_zeros(1, arriving) for need in needs_of(reducer)}
    if "positions" in given:
        given["positions"] = tokens.new_zeros(arriving, 2)
    if "keys" in given:
        given["keys"] = tokens
    with torch.no_grad():
        merged = copy.deepcopy(reducer).eval()(tokens, **given)
    shape = tuple(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
    if shape != (1, num_tokens, dim):
        raise ValueError(
            f"reducer ({type(reducer).__name__}) gives {shape} for {arriving} tokens of width {dim}, but "
            f"num_tokens ({num_tokens}) asks for {(1, num_tokens, dim)}"
        )
