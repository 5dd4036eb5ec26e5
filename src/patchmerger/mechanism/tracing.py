"""Symbolic tracing (torch.fx), as feature extractors do it: a model runs on proxies, whose shapes are open."""

from __future__ import annotations

import torch


def is_traced(x: object) -> bool:
    """Whether ``x`` stands for a tensor in symbolic tracing."""
    return isinstance(x, torch.fx.Proxy)
