"""Train and eval mode, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
