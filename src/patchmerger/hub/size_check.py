"""That a config asks for no more than its weights hold, before memory is taken for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

# How much more a model may hold than its file: tied weights and what is computed when it is made, such as positions.
_PARAMETERS, _BUFFERS, _ALWAYS = 4, 64, 2**24


def refuse_absurd_depth(config: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> None:
    """Refuse a config with more layers than there are tensors: making them would take for ever.

    Raises:
        ValueError: It names the setting, its value and the number of tensors.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            refuse_absurd_depth(value, weights, source)
        elif type(value) is int and name.endswith(("depth", "layers")) and value > max(len(weights), 64):
            raise ValueError(f"{source} says {name} {value}, but there are {len(weights)} tensors: copy both again")


@contextmanager
def limited_to(weights: Mapping[str, Tensor], source: Path) -> Iterator[None]:
    """Refuse to make a module within that holds many times more numbers than ``weights``; for the meta device.

    Raises:
        ValueError: It names the tensor and its shape.
    """
    held = sum(tensor.numel() for tensor in weights.values())
    thread, seen = threading.get_ident(), {"parameters": 0, "numbers": 0, "computed": 0}

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        parameter = isinstance(tensor, nn.Parameter)
        seen["parameters"] += parameter
        seen["numbers" if parameter else "computed"] += tensor.numel()
        if (
            seen["numbers"] > _PARAMETERS * held + _ALWAYS
            or seen["computed"] > _BUFFERS * held + _ALWAYS
            or seen["parameters"] > _PARAMETERS * len(weights) + 1000
        ):
            raise ValueError(
                f"{source} describes a model that is much larger than its weights, which are {held:,} numbers: at "
                f"{type(module).__name__}.{name} {tuple(tensor.shape)} it has {seen['numbers'] + seen['computed']:,}"
            )

    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
