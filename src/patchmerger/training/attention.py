"""Attention over few tokens in bf16 on a CPU: torch's plain kernel trains several times as fast as its fused one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_FEW = 100
"""Up to so many tokens; with more the plain kernel needs memory, N² for each head and image, and gains less."""

_any_kernel = F.scaled_dot_product_attention


@contextmanager
def short_attention() -> Iterator[None]:
    """Within it, attention that is trained on a CPU in bf16 over at most 100 tokens runs by torch's plain kernel.

    The gradient of the fused kernel (flash attention) takes as long for 9 tokens as for 32: on a CPU with AVX-512 seven
    times as long as that of the plain one, and three times at 65 tokens. The plain one computes in float32 inside. All
    else, also what needs no gradient, runs as ever. It stands in torch's place rather than in a mode of torch, for what
    checkpointed blocks compute again must run by the same kernel, and a mode is off by then.
    """
    with patch.object(F, "scaled_dot_product_attention", _attention):
        yield


def _attention(query: Tensor, key: Tensor, value: Tensor, *further: Any, **named: Any) -> Tensor:
    if not _is_faster_plain(query, key, value):
        return _any_kernel(query, key, value, *further, **named)
    with sdpa_kernel(SDPBackend.MATH):
        return _any_kernel(query, key, value, *further, **named)


def _is_faster_plain(query: Tensor, key: Tensor, value: Tensor) -> bool:
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    few = max(query.shape[-2], key.shape[-2]) <= _FEW
    return few and dtype == torch.bfloat16 and any(each.requires_grad for each in (query, key, value))
