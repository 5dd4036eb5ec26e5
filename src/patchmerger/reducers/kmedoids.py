"""K-medoids: the tokens that stand best for all (arXiv 2110.03860)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.modes import full_precision
from patchmerger.reducers.distances import squared_distances
from patchmerger.reducers.selecting import Selecting
from patchmerger.runs.checks import check_count


class KMedoids(Selecting):
    """Keep the M tokens that reconstruct all best: a local minimum of ``Σ_n min_m ‖x_n − x_{k_m}‖²``.

    1. Farthest points first: k_1 is the token with the smallest sum of squared distances to all, each next one the
       token farthest from those chosen.
    2. ``num_iterations`` times: each token goes to its nearest medoid; of each cluster, the token with the smallest
       sum of squared distances to the others becomes its medoid, if it is smaller than that of the present one.

    Nothing is learned, and nothing drawn at random; the gradient runs through the tokens that are kept. The paper's
    best form weighs tokens by the attention that they get; this one, also the paper's, asks for the tokens alone.

    Args:
        num_tokens: Tokens that go on, M.
        num_iterations: Rounds of step 2.

    Source: Marin, Chang, Ranjan, Prabhu, Rastegari and Tuzel, *Token Pooling in Vision Transformers*, arXiv
    2110.03860, section 4; farthest points and 3 iterations as in Haurum et al., arXiv 2308.04657.
    """

    def __init__(self, num_tokens: int, *, num_iterations: int = 3) -> None:
        super().__init__(num_tokens)
        self.num_iterations = check_count("num_iterations", num_iterations, at_least=0)

    def kept(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Indices of the medoids, (B, M)."""
        return _medoids(x, mask, self.num_tokens, self.num_iterations)


@torch.fx.wrap  # one step of a graph that is traced symbolically
@torch.no_grad()
def _medoids(x: Tensor, mask: Tensor | None, num_tokens: int, num_iterations: int) -> Tensor:
    """Indices of the medoids, (B, M), in rising order."""
    real = torch.ones_like(x[:, :, 0], dtype=torch.bool) if mask is None else mask  # (B, N)
    distance = squared_distances(x.masked_fill(~real[:, :, None], 0))  # (B, N, N)
    index = _farthest_points(distance, real, num_tokens)  # (B, M)
    number = torch.arange(num_tokens, device=x.device).expand_as(index)  # (B, M): 0 … M − 1
    for _ in range(num_iterations):
        to_medoid = distance.gather(2, index[:, None].expand(-1, distance.shape[1], -1))  # (B, N, M)
        label = to_medoid.argmin(dim=2).masked_fill(~real, num_tokens)  # (B, N); M for padding
        label = label.scatter(1, index, number)  # a medoid stays in its own cluster, beside a token like it
        inside = F.one_hot(label, num_tokens + 1)[:, :, :num_tokens].to(distance.dtype)  # (B, N, M)
        with full_precision(distance):
            total = (distance @ inside).masked_fill(inside == 0, torch.inf)  # (B, N, M)
        best, candidate = total.min(dim=1)  # (B, M)
        index = torch.where(best < total.gather(1, index[:, None])[:, 0], candidate, index)
    return index.sort(dim=1).values


def _farthest_points(distance: Tensor, real: Tensor, num_tokens: int) -> Tensor:
    """Indices (B, M): the token nearest to all, then each time the one farthest from those chosen."""
    total = (distance * real[:, None]).sum(dim=2).masked_fill(~real, torch.inf)  # (B, N)
    index = total.argmin(dim=1, keepdim=True)  # (B, 1)
    chosen = [index]
    nearest = torch.full_like(total, torch.inf).masked_fill(~real, -1)  # (B, N); padding comes last
    for _ in range(num_tokens - 1):
        from_last = distance.gather(1, index[:, :, None].expand(-1, -1, distance.shape[2]))[:, 0]  # (B, N)
        nearest = torch.minimum(nearest, from_last).scatter(1, index, -2)  # none twice
        index = nearest.argmax(dim=1, keepdim=True)
        chosen.append(index)
    return torch.cat(chosen, dim=1)
