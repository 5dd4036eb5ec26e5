"""Agglomerative token clustering, ATC: the two nearest clusters become one, again and again (arXiv 2409.11923)."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from patchmerger.reducers.averaging import Averaging, cluster_averages
from patchmerger.reducers.distances import cosine_distances

Linkage: TypeAlias = Literal["average", "single", "complete"]
"""The distance of two clusters: the mean, the smallest or the largest of the distances of their tokens."""


class ATC(Averaging):
    """Merge the two nearest clusters until M are left; each output token is the mean of a cluster.

    Every token begins as a cluster of its own. The distance of two tokens is ``1 − cos(x_i, x_j)``, that of two
    clusters the ``linkage``: of i ∪ j to k it is ``(|i| d_ik + |j| d_jk) / (|i| + |j|)`` for ``"average"``, the
    smaller of the two for ``"single"``, the larger for ``"complete"``. ``Y_m`` is the mean of cluster m; clusters are
    in the order of their first tokens.

    All images of a batch merge at once, on the device of the tokens: N − M steps one after the other, each of which
    looks through all N² distances, so it suits GPUs and small N. Compiled and exported, they are a loop in the graph.
    Nothing is learned; the choice of clusters has no gradient, the means have. The paper clusters the keys of attention
    within a block and goes on with attention weighed by size; here the tokens themselves are clustered, between two
    blocks.

    Args:
        num_tokens: Tokens that go on, M.
        linkage: ``"average"`` (the paper's best where few tokens are kept), ``"single"`` or ``"complete"``.

    Source: Haurum, Escalera, Taylor and Moeslund, *Agglomerative Token Clustering*, arXiv 2409.11923, section 3.
    """

    def __init__(self, num_tokens: int, *, linkage: Linkage = "average") -> None:
        super().__init__(num_tokens)
        if linkage not in get_args(Linkage):
            raise ValueError(f"linkage ({linkage!r}) must be one of {', '.join(map(repr, get_args(Linkage)))}")
        self.linkage: Linkage = linkage

    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N)."""
        return _cluster_averages(x, mask, self.num_tokens, self.linkage)


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _cluster_averages(x: Tensor, mask: Tensor | None, num_tokens: int, linkage: Linkage) -> Tensor:
    """A, (B, M, N)."""
    return cluster_averages(_clusters(x, mask, num_tokens, linkage), num_tokens)


@torch.no_grad()
def _clusters(x: Tensor, mask: Tensor | None, num_tokens: int, linkage: Linkage) -> Tensor:
    """Cluster of each token, (B, N); M for padding. Clusters are in the order of their first tokens."""
    real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if mask is None else mask  # (B, N)
    number = torch.arange(x.shape[1], device=x.device)  # (N,)
    apart = ~(real[:, None] & real[:, :, None]) | (number == number[:, None])
    distance = cosine_distances(x).masked_fill(apart, torch.inf)  # (B, N, N)
    size = torch.ones_like(distance[:, 0])  # (B, N)
    slot = number.expand_as(real).clone()  # (B, N): the first token of its cluster
    num_merges = real.sum(dim=1, keepdim=True) - num_tokens  # (B, 1)

    def merge(state: list[Tensor], step: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        distance, size, slot, num_merges = state
        if torch.compiler.is_compiling():
            # A step of a loop in a graph leaves what it is given as it is, and knows of nothing else (OpenVINO).
            distance, num_merges = distance.clone(), num_merges.clone()
        goes_on = step[0] < num_merges  # (B, 1)
        return [*_merge_nearest(distance, size, slot, goes_on, linkage), num_merges], [step[0].clone()]

    state, steps = [distance, size, slot, num_merges], torch.arange(x.shape[1] - num_tokens, device=x.device)
    if torch.compiler.is_compiling():
        state, _ = scan(merge, state, [steps])  # a loop in the graph, not N − M copies of its body
    else:
        for step in steps:
            state, _ = merge(state, [step])
    slot = state[2]
    rank = ((slot == number) & real).cumsum(dim=1) - 1  # (B, N): how many clusters begin before
    return rank.gather(1, slot).masked_fill(~real, num_tokens)


def _merge_nearest(distance: Tensor, size: Tensor, slot: Tensor, goes_on: Tensor, linkage: Linkage) -> list[Tensor]:
    """The same after the two nearest clusters of each image that goes on have become one; ``distance`` in place."""
    i = distance.amin(dim=2).argmin(dim=1, keepdim=True)  # (B, 1): the first of the smallest, so i < j
    row_i = _row(distance, i)  # (B, N)
    j = row_i.argmin(dim=1, keepdim=True)
    row_j = _row(distance, j)
    size_i, size_j = size.gather(1, i), size.gather(1, j)
    merged = _linked(row_i, row_j, size_i, size_j, linkage).scatter(1, torch.cat((i, j), dim=1), torch.inf)
    _replace(distance, i, torch.where(goes_on, merged, row_i))
    _replace(distance, j, row_j.masked_fill(goes_on, torch.inf))
    size = size.scatter(1, i, size_i + size_j * goes_on)
    return [distance, size, torch.where((slot == j) & goes_on, i, slot)]


def _row(distance: Tensor, index: Tensor) -> Tensor:
    """Row ``index`` (B, 1) of each matrix (B, N, N): (B, N)."""
    return distance.gather(1, index[:, :, None].expand(-1, -1, distance.shape[2]))[:, 0]


def _replace(distance: Tensor, index: Tensor, row: Tensor) -> None:
    """Put ``row`` (B, N) in the place of row and column ``index`` (B, 1) of each matrix, in place."""
    place = index[:, :, None].expand(-1, -1, distance.shape[2])  # (B, 1, N)
    distance.scatter_(1, place, row[:, None])
    distance.scatter_(2, place.transpose(1, 2), row[:, :, None])


def _linked(row_i: Tensor, row_j: Tensor, size_i: Tensor, size_j: Tensor, linkage: Linkage) -> Tensor:
    """Distances (B, N) of the union of clusters i and j to all others, by the formula of Lance and Williams."""
    if linkage == "single":
        return torch.minimum(row_i, row_j)
    if linkage == "complete":
        return torch.maximum(row_i, row_j)
    return (size_i * row_i + size_j * row_j) / (size_i + size_j)
