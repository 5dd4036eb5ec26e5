"""The two halves of a block, attention and MLP, run apart by the host's own forward pass; and what attention saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from patchmerger.mechanism.modes import full_precision
from patchmerger.mechanism.stand_in import Silent, StandIn


@dataclass
class Seen:
    """What one call of an attention computed on the way, for T tokens, h heads of width d.

    Queries are (B, h, T or 1, d), at least of the class token; keys (B, h, T, d), also before they were rotated by
    place (``content_key``), and values, where they were asked for. ``scale`` is the factor on their products, ``bias``
    what was added to the scores, or ``None``.
    """

    query: Tensor
    key: Tensor
    scale: float
    content_key: Tensor
    value: Tensor | None = None
    bias: Tensor | None = None

    def given(self, needs: Sequence[str], num_prefix: int) -> dict[str, Tensor]:
        """What of ``needs`` comes from attention, for the tokens after the first ``num_prefix``."""
        found: dict[str, Tensor] = {}
        if "keys" in needs:
            found["keys"] = self.content_key[:, :, num_prefix:].mean(dim=1)  # (B, N, d)
        if "class_attention" in needs or "significance" in needs:
            attention = self._class_attention()[:, :, num_prefix:]  # (B, h, N)
            if "class_attention" in needs:
                found["class_attention"] = attention.mean(dim=1)  # (B, N)
            if "significance" in needs and self.value is not None:
                norms = self.value[:, :, num_prefix:].float().norm(dim=-1)  # (B, h, N)
                found["significance"] = (attention * norms).sum(dim=1)  # (B, N)
        return found

    def _class_attention(self) -> Tensor:
        """How much the first token attends to each, (B, h, T), in float32."""
        with full_precision(self.key):
            scores = (self.query[:, :, :1].float() * self.scale) @ self.key.float().transpose(2, 3)  # (B, h, 1, T)
        if self.bias is not None:
            scores = scores + self.bias.float()[:, :, :1]
        return scores.softmax(dim=-1)[:, :, 0]


class Attend(Protocol):
    """Calls an attention of one library; an importable function, so that it is pickled by its name."""

    def __call__(
        self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], bias: Tensor | None, needs: Sequence[str]
    ) -> tuple[Any, Seen | None]:
        """What ``attention(*args, **kwargs)`` gives, and what it saw where a reducer ``needs`` something of it.

        ``bias``, (B, 1, 1 or T, T), is added to the scores.
        """


@dataclass(frozen=True)
class BlockParts:
    """The names of a block's two branches, its children, and how its attention is called.

    ``gives_pair`` says whether the attention gives a pair of tokens and weights.
    """

    attention: str
    mlp: str
    attend: Attend
    gives_pair: bool = False

    def run(
        self,
        block: nn.Module,
        x: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        bias: Tensor | None = None,
        needs: Sequence[str] = (),
        only_attention: bool = False,
    ) -> tuple[Any, Seen | None]:
        """The whole block, or ``x + attention(norm(x))`` alone, and what the attention saw if a reducer ``needs`` it.

        ``args`` and ``kwargs`` are of the call after the tokens x, (B, T, D). ``bias``, (B, 1, 1 or T, T), is added to
        the attention's scores.
        """
        attention = _Attention(self.attend, getattr(block, self.attention), bias, needs)
        exchanged: dict[str, Any] = {self.attention: attention}
        if only_attention:
            exchanged[self.mlp] = Silent()
        output = _host_forward(block)(StandIn(block, exchanged), x, *args, **kwargs)
        return output, attention.seen

    def run_mlp(self, block: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``x + MLP(norm(x))``: the block without its attention."""
        silent = Silent(as_tuple=self.gives_pair)
        return _host_forward(block)(StandIn(block, {self.attention: silent}), x, *args, **kwargs)

    @torch.no_grad()
    def error(self, block: nn.Module, x: Tensor, kwargs: dict[str, Any]) -> float:
        """By how much the two halves, one after the other, differ from the whole block; 0 for a pre-norm one."""
        whole = _host_forward(block)(block, x, **kwargs)
        half, seen = self.run(
            block, x, (), kwargs, needs=("keys", "class_attention", "significance"), only_attention=True
        )
        if seen is None:
            return float("inf")
        both = self.run_mlp(block, _first(half), (), kwargs)
        difference = (_first(both) - _first(whole)).abs().max() / _first(whole).abs().max()
        return 0.0 if difference.is_meta else float(difference)


class _Attention:
    """Stands for an attention in one call of its block."""

    def __init__(self, attend: Attend, attention: Any, bias: Tensor | None, needs: Sequence[str]) -> None:
        self.attend, self.attention, self.bias, self.needs = attend, attention, bias, needs
        self.seen: Seen | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output, self.seen = self.attend(self.attention, args, kwargs, self.bias, self.needs)
        return output


def _host_forward(block: nn.Module) -> Any:
    return getattr(block, "patchmerger_host_class", type(block)).forward


def _first(output: Any) -> Tensor:
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    return tokens
