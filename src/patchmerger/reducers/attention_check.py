"""That a model's blocks can give a reducer what it needs of their attention; tried out before anything is changed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from patchmerger.hosts import Host, UnsupportedModelError
from patchmerger.hosts.attention import TOKENS_ALONE, block_parts, patched
from patchmerger.mechanism.block_parts import BlockParts
from patchmerger.mechanism.blocks import is_merging, needs_of, works_inside
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import has_own_forward, host_class
from patchmerger.reducers.names import method_of

# Halves of a block are computed in the order of the whole; what is left is the rounding of a kernel's choice.
_TOLERANCE = 50


def check_attention(model: nn.Module, host: Host, num_kept_prefix_tokens: int, reducers: dict[int, nn.Module]) -> None:
    """Refuse a reducer that works inside a block, or asks for proportional attention, where blocks do not allow it.

    Raises:
        UnsupportedModelError: The blocks are of a kind whose attention is not known, or no pre-norm blocks with an
            attention and an MLP that are added one after the other.
        ValueError: A reducer goes by the attention of a class token, and there is none.
    """
    present = {i: block.merger for i, block in enumerate(host.blocks, start=1) if is_merging(block)} | reducers
    sized = [number for number, reducer in present.items() if getattr(reducer, "gives_sizes", False)]
    for reducer in reducers.values():
        _check_class_token(model, host, num_kept_prefix_tokens, method_of(reducer) or type(reducer).__name__, reducer)
    tried: set[type[nn.Module]] = set()
    for number, block in enumerate(host.blocks, start=1):
        inside = number in present and works_inside(present[number])
        if not inside and not any(place <= number for place in sized):
            continue
        reducer = present[number] if inside else present[max(place for place in sized if place <= number)]
        name = method_of(reducer) or type(reducer).__name__
        parts = block_parts(block)
        if parts is None or host.sequence_first:
            raise _unknown(model, block, name, "are of a kind whose attention is not known")
        for part in (block, getattr(block, parts.attention)):
            if has_own_forward(part):
                raise UnsupportedModelError(
                    model,
                    f"{patched(part)}, as reducer ({name!r}) needs",
                    f"{'insert before that tool' if part is block else 'take the patch away'}, or {TOKENS_ALONE}",
                    "changed",
                )
        if host_class(block) not in tried:
            tried.add(host_class(block))
            _try(model, host, block, parts, name)


def _check_class_token(
    model: nn.Module, host: Host, num_kept_prefix_tokens: int, name: str, reducer: nn.Module
) -> None:
    goes_by_it = {"class_attention", "significance"} & set(needs_of(reducer))
    if not goes_by_it and not getattr(reducer, "needs_class_token", False):
        return
    if not host.reads_class_token:
        raise ValueError(
            f"reducer ({name!r}) needs a class token, and {host_class(model).__name__} has none "
            "here: choose another, such as 'tome' or 'patchmerger'"
        )
    if num_kept_prefix_tokens == 0:
        raise ValueError(
            f"reducer ({name!r}) needs a class token, and prefix='merge' would merge that: use prefix='keep'"
        )


def _try(model: nn.Module, host: Host, block: nn.Module, parts: BlockParts, name: str) -> None:
    """Run the halves of a block one after the other, on random tokens, and compare with the whole."""
    like = next(p for p in block.parameters() if p.is_floating_point())
    prefix, width = host.num_prefix_tokens, _head_dim(getattr(block, parts.attention))
    noise = torch.randn(1, prefix + 3, host.dim, generator=torch.Generator().manual_seed(0))
    x = noise.to(device=like.device, dtype=like.dtype)
    parameters = list(inspect.signature(host_class(block).forward).parameters.values())[2:]
    kwargs: dict[str, Any] = {
        p.name: None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    rope = host.inputs.rope
    if rope is not None and rope.layout == "(cos, sin)":
        table = torch.ones(3, width), torch.zeros(3, width)
        table = (table[0].to(x), table[1].to(x))
        kwargs[rope.arguments[0]] = tuple(t[None] for t in table) if rope.leading == "images" else table
    with eval_mode(block):
        error = parts.error(block, x, kwargs)
    if not error <= _TOLERANCE * torch.finfo(like.dtype).eps:
        raise _unknown(
            model, block, name, "do not add first an attention and then an MLP to normalised tokens (pre-norm)"
        )


def _head_dim(attention: Any) -> int:
    return int(getattr(attention, "head_dim", 0)) or attention.embed_dim // attention.num_heads


def _unknown(model: nn.Module, block: nn.Module, name: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        model,
        f"reducer ({name!r}) works with the attention inside of blocks, but its {host_class(block).__name__}s {reason}",
        TOKENS_ALONE,
        "attention",
    )
