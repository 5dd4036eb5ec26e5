"""The meta device, on which models have shapes and no numbers, without the work that only numbers need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_IN_PLACE = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_, Tensor.zero_, Tensor.fill_})
_SAME_SHAPE = frozenset({F.layer_norm, F.gelu, F.silu, F.softmax, Tensor.softmax})


class ShapesAlone(TorchFunctionMode):
    """Within it, what changes only the numbers of a tensor on the meta device is left out.

    Torch finds the shape of each such result step by step, which takes most of the time that a model needs there.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor itself, or an empty one like it."""
        if function in _IN_PLACE and args and args[0].is_meta:
            return args[0]
        if function in _SAME_SHAPE and args and args[0].is_meta:
            return torch.empty_like(args[0])
        return function(*args, **kwargs or {})


@contextmanager
def meta_device() -> Iterator[None]:
    """Within it, tensors and models are made on the meta device."""
    with torch.device("meta"), ShapesAlone():
        yield
