"""Reducers whose output tokens are averages of the tokens that come in: what they share."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from patchmerger.mechanism.tracing import is_traced
from patchmerger.reducers.checks import check_tokens
from patchmerger.reducers.reducer import Reducer
from patchmerger.runs.checks import check_count


class Averaging(Reducer):
    """Base of reducers whose output tokens are averages: ``Y = A X``, where each row of A sums to 1.

    A method says in :meth:`averages` what A is; the rest is the same for all: the checks, padding that gets exactly
    zero weight whatever it holds, and the tokens themselves, in their order, where N = M (keep rate 1). ``dim`` is D,
    where parameters fix it.
    """

    def __init__(self, num_tokens: int, dim: int | None = None) -> None:
        super().__init__(num_tokens)
        self.dim = dim if dim is None else check_count("dim", dim)

    @abstractmethod
    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N), in at least float32, for tokens (B, N, D) whose padding is 0."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Reduce tokens (B, N, D), N ≥ ``num_tokens``, to (B, num_tokens, D), as :class:`Reducer` has it.

        Raises:
            ValueError: ``x`` has another shape or fewer than ``num_tokens`` tokens, ``mask`` is not (B, N) or, in
                eager mode, leaves an image fewer than ``num_tokens`` real tokens (compiled or exported, clusters
                that have none are 0).
            TypeError: ``mask`` is not boolean.
        """
        if not is_traced(x):  # traced symbolically, the shapes are open
            check_tokens(x, mask, self.num_tokens, dim=self.dim)
            if mask is None and x.shape[1] == self.num_tokens and not return_weights:
                return x
        x = _without_padding(x, mask)
        merged, weights = _average(x, self.averages(x, mask), mask)
        return (merged, weights) if return_weights else merged


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over N of scores (B, M, N), in at least float32; padding, and an image of nothing else, gets 0."""
    return _masked_softmax(scores, mask)


# In symbolic tracing it is open whether there is a mask: these are one step of a graph.
@torch.fx.wrap
def _without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, :, None], 0)


@torch.fx.wrap
def _masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        return scores.softmax(dim=-1)
    padding = ~mask[:, None]  # (B, 1, N)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(padding, lowest).softmax(dim=-1).masked_fill(padding, 0)


@torch.fx.wrap
def _average(x: Tensor, weights: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Y (B, M, D) and A (B, M, N); an image of M real tokens keeps them as they are, whatever it stands beside."""
    number, tokens = weights.shape[1:]
    if mask is None and number != tokens:
        return torch.bmm(weights.to(x.dtype), x).to(x.dtype), weights  # bmm, as in merger.py
    real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if mask is None else mask  # (B, N)
    place = torch.arange(number, device=x.device)[:, None]  # (M, 1)
    themselves = ((real.cumsum(dim=1)[:, None] - 1 == place) & real[:, None]).to(weights.dtype)  # (B, M, N)
    weights = torch.where((real.sum(dim=1) == number)[:, None, None], themselves, weights)
    return torch.bmm(weights.to(x.dtype), x).to(x.dtype), weights


def cluster_averages(label: Tensor, num_tokens: int, scores: Tensor | None = None) -> Tensor:
    """A (B, M, N) of clusters: row m weighs the tokens of cluster m, alike or by softmax of their ``scores``.

    ``label`` is the cluster of each token from 0 to M − 1, (B, N); M for padding. Scores are logits of the tokens
    within their cluster, (B, N). A is in at least float32; a cluster without tokens has a row of zeros.
    """
    inside = label[:, None] == torch.arange(num_tokens, device=label.device)[:, None]  # (B, M, N)
    if scores is None:
        return inside.float() / inside.sum(dim=-1, keepdim=True).clamp(min=1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))[:, None]  # (B, 1, N)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~inside, lowest).softmax(dim=-1).masked_fill(~inside, 0)
