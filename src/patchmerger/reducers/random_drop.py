"""Random dropping: the floor under every method that chooses tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from patchmerger.reducers.selecting import Selecting, first_by
from patchmerger.runs.checks import check_count


class RandomDrop(Selecting):
    """Keep M tokens at random, the others are dropped.

    In training each image of each batch draws its own, by torch's generator (``torch.manual_seed``). In evaluation
    every image keeps the same ones, for each N: those of the lowest hash of (index, ``seed``), so that results can be
    repeated on any device, compiled and exported. It sees no content and learns nothing.

    Args:
        num_tokens: Tokens that go on, M.
        seed: Which tokens are kept in evaluation.
    """

    def __init__(self, num_tokens: int, *, seed: int = 0) -> None:
        super().__init__(num_tokens)
        self.seed = check_count("seed", seed, at_least=0)

    def kept(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Indices of the kept tokens, (B, M) in training, (1, M) in evaluation of images without padding."""
        return _drawn(x, mask, self.num_tokens, None if self.training else self.seed)


@torch.fx.wrap  # one step of a graph that is traced symbolically
def _drawn(x: Tensor, mask: Tensor | None, num_tokens: int, seed: int | None) -> Tensor:
    """Indices of M tokens, drawn for each image (B, M), or the same ones for all (1, M) where there is a seed."""
    if seed is None:
        return first_by(torch.rand(x.shape[:2], device=x.device), num_tokens, mask)
    return first_by(_hash(torch.arange(x.shape[1], device=x.device), seed)[None].float(), num_tokens, mask)


_BITS = 0xFFFFFFFF
_FACTOR = 0x45D9F3B


def _hash(index: Tensor, seed: int) -> Tensor:
    """A number below 2³² for each index; products stay below 2⁶³."""
    mixed = (index + 1 + (seed * 0x9E3779B1 & _BITS)) & _BITS
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * _FACTOR) & _BITS
    return mixed ^ (mixed >> 16)
