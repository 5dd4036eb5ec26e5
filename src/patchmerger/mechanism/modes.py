"""Modes of computation, put back as they were: train and eval, and no autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from patchmerger.mechanism.tracing import is_traced


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of ``x``, for what is chosen by small differences; the meta device knows of none.

    ``x.float() @ y`` alone is not enough: autocast casts what goes into a product down again.
    """
    return nullcontext() if is_traced(x) or x.is_meta else torch.autocast(x.device.type, enabled=False)


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Eval mode within; afterwards every submodule is in the mode that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def learning_mode(model: nn.Module) -> None:
    """Eval mode (no dropout, no stochastic depth), but for reducers whose parameters learn in train mode alone."""
    model.eval()
    for module in model.modules():
        if getattr(module, "learns_in_train_mode", False):
            module.train()
