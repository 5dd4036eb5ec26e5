"""Read the weights A of a model's mergers in one forward pass, without hooks, and with nothing left in the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from patchmerger.mechanism.blocks import MergingBlock
from patchmerger.mechanism.patch_grid import PatchGrid


def tells_weights(reducer: nn.Module) -> bool:
    """Whether a reducer's forward takes ``return_weights`` and then gives (Y, A)."""
    return "return_weights" in inspect.signature(reducer.forward).parameters


@contextmanager
def recorded_weights(
    model: nn.Module, blocks: Mapping[int, MergingBlock], grid: PatchGrid | None = None
) -> Iterator[dict[int, Tensor]]:
    """Within it, each forward pass of ``model`` leaves the weights A (B, M, N) of its mergers behind, by number.

    What a block knows (its ``merge_state``) is exchanged for the time being and put back as the object that it was, so
    that no compiled graph is touched: graphs that exist run again afterwards as they are. Within it everything runs
    eager, compiled parts of the model too, whose graphs have no place for A.

    ``blocks`` are those that merge, each under the number that its weights are to be found by; their mergers must tell
    them (see :func:`tells_weights`). ``grid`` gets from the host where the patches are that come to the first of them,
    unless located queries have a grid of their own there, which is then the one to look at.
    """
    found: dict[int, Tensor] = {}
    states = {number: block.merge_state for number, block in blocks.items()}
    try:
        for number, block in blocks.items():
            state = replace(states[number], record=partial(found.__setitem__, number))
            if grid is not None and not state.after_merge and state.grid is None:
                state = replace(state, grid=grid)
            block.merge_state = state
        with _eager(model.modules()):
            yield found
    finally:
        for number, block in blocks.items():
            block.merge_state = states[number]


def _eager(modules: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Compiled code would be compiled again for what is recorded."""
    compiled = any(module._compiled_call_impl is not None or isinstance(module, OptimizedModule) for module in modules)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
