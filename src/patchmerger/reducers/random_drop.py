"""Tokens kept at random: the floor for every method that chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from patchmerger.reducers.reducer import Reducer, one_hot_weights, take_tokens


class RandomDrop(Reducer):
    """Keep M of N tokens at random, in their order: in training others at each call, in evaluation always the same.

    In evaluation the choice is drawn from ``seed`` alone, for a number of tokens N: the same for all images, on every
    device, and from run to run. In training each image has its own, from torch's generator.

    Args:
        num_tokens: Tokens that go on, M.
        seed: Of the choice in evaluation.
    """

    def __init__(self, num_tokens: int, *, seed: int = 0) -> None:
        super().__init__(num_tokens)
        self.seed = seed

    def forward(self, x: Tensor, *, return_weights: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Keep (B, num_tokens, D) of (B, N, D).

        Args:
            x: Tokens, (B, N, D).
            return_weights: Give A (B, num_tokens, N) as well: 1 for the token that is kept.
        """
        images, number = x.shape[:2]
        if self.training:
            chance = torch.rand(images, number, device=x.device)
        else:
            chance = _scattered(number, self.seed, x.device).expand(images, -1)
        index = chance.argsort(dim=1, stable=True)[:, : self.num_tokens].sort(dim=1).values  # (B, M)
        kept = take_tokens(x, index)
        return (kept, one_hot_weights(index, number)) if return_weights else kept


def _scattered(number: int, seed: int, device: torch.device) -> Tensor:
    """Whole numbers in no order, (N,), without the state of a generator (the finaliser of MurmurHash3)."""
    bits = (torch.arange(1, number + 1, device=device) + seed * 0x9E3779B9) & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
    return bits ^ (bits >> 16)
