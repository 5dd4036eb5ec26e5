"""DPC-kNN: clusters around density peaks, merged by learned scores (arXiv 2204.08680)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchmerger.reducers.averaging import Averaging, cluster_averages
from patchmerger.reducers.distances import squared_distances
from patchmerger.reducers.selecting import first_by
from patchmerger.runs.checks import check_count


class DPCKNN(Averaging):
    """Cluster the tokens around density peaks and merge each cluster by learned scores.

    With d_ij = ‖x_i − x_j‖ / √D:

    - density ``ρ_i = exp(−mean of d_ij² over the k nearest j, i itself among them)``;
    - ``δ_i = min of d_ij over the j of higher density``, or max over all j for the densest token;
    - the M tokens of the highest ``ρ_i · δ_i`` are the centres, and each token goes to the nearest;
    - ``Y_m = Σ e^{p_n} x_n / Σ e^{p_n}`` over the n of cluster m, with the score ``p_n = w · x_n + b`` learned.

    Of tokens with equal densities the first counts as the denser (the published code adds noise). w starts at 0, so
    that clusters start as plain means and the reducer works without training. The choice of clusters has no gradient,
    the merge has. The paper also adds p to the logits of later attention, which is no part of this module.

    Args:
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        num_neighbors: k; where fewer tokens come, all of them.

    Source: Zeng, Jin, Liu, Qian, Luo, Ouyang and Wang, *Not All Tokens Are Equal: Human-centric Visual Analysis via
    Token Clustering Transformer*, arXiv 2204.08680, section 3.2; √D and k = 5 from its code.
    """

    def __init__(self, num_tokens: int, dim: int, *, num_neighbors: int = 5) -> None:
        super().__init__(num_tokens, dim)
        self.num_neighbors = check_count("num_neighbors", num_neighbors)
        self.score = nn.Linear(dim, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N)."""
        return _peak_averages(x, self.score(x)[:, :, 0], mask, self.num_tokens, self.num_neighbors)


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _peak_averages(x: Tensor, scores: Tensor, mask: Tensor | None, num_tokens: int, num_neighbors: int) -> Tensor:
    """A, (B, M, N)."""
    return cluster_averages(_clusters(x, mask, num_tokens, num_neighbors), num_tokens, scores)


@torch.no_grad()
def _clusters(x: Tensor, mask: Tensor | None, num_tokens: int, num_neighbors: int) -> Tensor:
    """Cluster of each token, (B, N); M for padding. Clusters are in the order of their centres."""
    square = squared_distances(x) / x.shape[-1]  # (B, N, N)
    real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if mask is None else mask  # (B, N)
    pair = real[:, None] & real[:, :, None]  # (B, N, N)
    density = _density(square.masked_fill(~pair, torch.inf), min(num_neighbors, x.shape[1]))  # (B, N)
    first = torch.arange(x.shape[1], device=x.device)
    equal = (density[:, None] == density[:, :, None]) & (first < first[:, None])
    denser = ((density[:, None] > density[:, :, None]) | equal) & pair  # [b, i, j]: j is denser than i
    to_denser = square.masked_fill(~denser, torch.inf).amin(dim=2)  # (B, N)
    farthest = square.masked_fill(~pair, 0).amax(dim=2)
    peak = torch.where(denser.any(dim=2), to_denser, farthest).sqrt() * density  # (B, N): ρ · δ
    center = first_by(-peak.masked_fill(~real, -1), num_tokens, None)  # (B, M)
    to_center = square.gather(2, center[:, None].expand(-1, x.shape[1], -1))  # (B, N, M)
    label = to_center.argmin(dim=2)
    number = torch.arange(num_tokens, device=x.device).expand_as(center)
    return label.scatter(1, center, number).masked_fill(~real, num_tokens)  # a centre is in its own cluster


def _density(square: Tensor, num_neighbors: int) -> Tensor:
    """ρ, (B, N), of squared distances that are infinite where there is no token; 0 for padding."""
    near = square.topk(num_neighbors, dim=2, largest=False).values  # (B, N, k)
    known = near.isfinite()
    mean = near.masked_fill(~known, 0).sum(dim=2) / known.sum(dim=2).clamp(min=1)
    return (-mean).exp() * known.any(dim=2)
