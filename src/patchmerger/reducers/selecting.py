"""Reducers that keep some of the tokens as they are and drop the others: what they share."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.tracing import is_traced
from patchmerger.reducers.checks import check_tokens
from patchmerger.reducers.reducer import Reducer, take_tokens


class Selecting(Reducer):
    """Base of reducers that keep M of the N tokens, in their order: ``Y_m = X[k_m]`` with k_1 < … < k_M.

    A method says in :meth:`kept` which ones. As weights, A[m, n] = 1 where n = k_m, else 0. Where N = M (keep rate 1)
    nothing changes.
    """

    @abstractmethod
    def kept(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Indices of the tokens to keep, (B, M) or (1, M) int64, in rising order and all different."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Keep some tokens of (B, N, D), N ≥ ``num_tokens``: (B, num_tokens, D), as :class:`Reducer` has it.

        ``positions`` are (N, 2) or (B, N, 2): row and column, each from 0 to 1. Fixed patterns need them, no others do.

        Raises:
            ValueError: ``x`` has another shape or fewer than ``num_tokens`` tokens, ``mask`` is not (B, N) or, in
                eager mode, leaves an image fewer than ``num_tokens`` real tokens (compiled or exported, those that
                are missing are 0), or ``positions`` are needed and not given.
            TypeError: ``mask`` is not boolean.
        """
        if not is_traced(x):  # traced symbolically, the shapes are open
            check_tokens(x, mask, self.num_tokens)
            if mask is None and x.shape[1] == self.num_tokens and not return_weights:
                return x
        kept, weights = _take(x, self.kept(x, mask, positions), mask)
        return (kept, weights) if return_weights else kept


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _take(x: Tensor, index: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tokens of these indices (B, M), and A (B, M, N); padding gives 0."""
    index = index.expand(x.shape[0], -1)  # len(x) would fix the size of batches in a graph
    kept = take_tokens(x, index)  # (B, M, D)
    weights = F.one_hot(index, x.shape[1]).float()  # (B, M, N)
    if mask is None:
        return kept, weights
    real = mask.gather(1, index)[:, :, None]  # (B, M, 1)
    return kept.masked_fill(~real, 0), weights * real


def first_by(key: Tensor, num_tokens: int, mask: Tensor | None) -> Tensor:
    """Indices of the M tokens of the lowest keys (B, N), in rising order, (B, M); of equal keys the first go first."""
    if mask is not None:
        key = key.expand(mask.shape).masked_fill(~mask, torch.inf)
    if torch.compiler.is_exporting():  # ONNX has no stable sort: take the lowest ranks, no two of which are equal
        place = torch.arange(key.shape[-1], device=key.device)
        lower, equal = key[..., None, :] < key[..., None], key[..., None, :] == key[..., None]  # (B, N, N)
        rank = (lower | (equal & (place < place[:, None]))).sum(dim=-1)  # (B, N)
        return rank.topk(num_tokens, dim=-1, largest=False).indices.sort(dim=-1).values
    return key.argsort(dim=-1, stable=True)[:, :num_tokens].sort(dim=-1).values
