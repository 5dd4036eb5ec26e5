"""Compiled models: as ``torch.compile`` makes them, or for inference alone, with frozen weights."""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config
from torch import nn

from patchmerger.speed.settings import Compile, check_compile


def compiled(model: nn.Module, compile: Compile = "frozen") -> Any:
    """Compile a model whole; with ``"frozen"`` for inference alone, as fast as it goes.

    Frozen, the weights are constants of the compiled code: on a CPU they are laid out anew for its matrix library,
    once, which counts most where few tokens meet large matrices, as after a merge; on a GPU the kernels are launched
    as one CUDA graph. The price is a second copy of the weights, and that changes of them after the first call are
    not seen. Each shape of the input is compiled for itself.

    Args:
        model: Any model, in eval mode for ``"frozen"``.
        compile: ``"frozen"``, or ``True`` for ``torch.compile`` as it is; ``False`` gives the model back.

    Returns:
        What to call in the model's place. It shares the model's weights; frozen, it records no gradients.

    Raises:
        ValueError: The model is in training mode and its weights are to be frozen, or another ``compile``.
    """
    check_compile(compile, training=False)
    if not compile:
        return model
    if compile == "frozen" and model.training:
        raise ValueError(f"model ({type(model).__name__}) is in training mode: call model.eval() before it is frozen")
    # fullgraph: a model that falls back to eager in places must not pass for a compiled one.
    if compile is True:
        return torch.compile(model, fullgraph=True, dynamic=False)
    fast = torch.compile(model, fullgraph=True, dynamic=False, options={"triton.cudagraphs": True})

    def frozen(*args: Any, **kwargs: Any) -> Any:
        # Not among the options: torch reads this one from its global settings, while it traces.
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            return fast(*args, **kwargs)

    return frozen
