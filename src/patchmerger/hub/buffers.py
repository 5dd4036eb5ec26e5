"""Buffers that no file holds, such as rotary tables: the number format that they have in a model that is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

BUFFERS = "patchmerger_buffers"
"""In a config, the number format of each of them that has another one than the weights."""


def other_dtypes(model: nn.Module) -> dict[str, str]:
    """The number format of each floating buffer that no file holds, by name, where it is not that of the weights."""
    usual = _usual_dtype(model.state_dict())
    return {
        name: str(buffer.dtype).removeprefix("torch.") for name, _, buffer in _computed(model) if buffer.dtype != usual
    }


def give_dtypes(model: nn.Module, weights: Mapping[str, Tensor], others: Mapping[str, str]) -> None:
    """Give these buffers the number format of the weights, as ``model.to`` would have, or that of ``others``, by name.

    A model is built in float32, and its weights are assigned to it in the format that they were saved in.

    Raises:
        ValueError: ``others`` names a format that is none of torch's.
    """
    usual = _usual_dtype(weights)
    for name, module, buffer in list(_computed(model)):
        known = getattr(torch, str(others[name]), None) if name in others else usual
        if not isinstance(known, torch.dtype):
            raise ValueError(f"{BUFFERS} says {others[name]!r} of {name}, which is no number format")
        module._buffers[name.rpartition(".")[2]] = buffer.to(known)


def _computed(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    for prefix, module in model.named_modules():
        for key in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(key)
            if buffer is not None and buffer.is_floating_point():
                yield f"{prefix}.{key}".removeprefix("."), module, buffer


def _usual_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """That of all floating weights; float32, in which models are built, where they have several."""
    found = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    return found.pop() if len(found) == 1 else torch.float32
