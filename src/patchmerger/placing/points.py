"""Points in the unit square: tiles, random ones, a Sobol sequence, and how they are drawn to where more is to be seen.

A point is (row, column), each from 0 (first edge of the image) to 1 (last edge).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.quasirandom import SobolEngine

from patchmerger.prior import tiles


def tile_middles(num_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Middles of N tiles that cover the image, (N, 2); there are more of them along its longer side, in patches."""
    middles, _ = tiles(num_tokens)
    return middles.flip(-1) if grid[0] > grid[1] else middles


def uniform_points(num_tokens: int, seed: int) -> Tensor:
    """N independent points, (N, 2), for this seed always the same."""
    return torch.rand(num_tokens, 2, generator=torch.Generator().manual_seed(seed))


def sobol_points(num_tokens: int, seed: int) -> Tensor:
    """The first N points of a Sobol sequence, scrambled by the seed, (N, 2): more even than independent ones."""
    engine: Any = SobolEngine(2, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    drawn: Tensor = engine.draw(num_tokens)
    return drawn.clamp(max=1 - 2**-24)


def random_patches(num_tokens: int, num_patches: int, seed: int) -> Tensor:
    """Indices of N patches out of all, drawn without replacement and in order, (N,)."""
    drawn = torch.randperm(num_patches, generator=torch.Generator().manual_seed(seed))
    return drawn[:num_tokens].sort().values


def toward_center(points: Tensor, std: float) -> Tensor:
    """Uniform points u (…, 2), drawn to the middle: p = ½ + s Φ⁻¹(u), where Φ ends at the edges of the image.

    s is the standard deviation of the normal distribution, as a share of the image.
    """
    scale = math.sqrt(2) * std
    within = math.erf(0.5 / scale)  # of the normal distribution, what lies in the image
    return 0.5 + scale * cast(Tensor, torch.special.erfinv((2 * points - 1) * within))


def drawn_to(density: Tensor, points: Tensor, uniform_share: float) -> Tensor:
    """Uniform points, drawn to where a map is high: the inverse of its distribution, by rows, then within the row.

    From points (B or 1, N, 2), positions (B, N, 2) are distributed as the density (B, h, w), from 0: each of its pixels
    has as many as its share of the sum. A map of zeros counts as uniform; ``uniform_share`` of the distribution is
    spread over the whole image.
    """
    images, height, width = density.shape
    total = density.sum(dim=(1, 2), keepdim=True)
    share = torch.where(total > 0, density / total, 1 / (height * width))
    share = (1 - uniform_share) * share + uniform_share / (height * width)  # (B, h, w)
    points = points.expand(images, -1, -1)
    row, within_row = _inverse(share.sum(dim=2)[:, None], points[..., :1])  # (B, N) each
    of_row = share.gather(1, row[..., None].expand(-1, -1, width))  # (B, N, w)
    column, within_column = _inverse(of_row, points[..., 1:])
    return torch.stack(((row + within_row) / height, (column + within_column) / width), dim=-1)  # (B, N, 2)


def _inverse(share: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where piecewise uniform distributions (B, N or 1, k) reach ``points`` (B, N, 1): the bin, and the place in it."""
    reached = share.cumsum(dim=-1)
    reached = (reached / reached[..., -1:]).expand(-1, points.shape[1], -1)  # (B, N, k)
    wanted = points.to(reached.dtype)
    found = (reached <= wanted).sum(dim=-1, keepdim=True).clamp(max=share.shape[-1] - 1)  # (B, N, 1)
    end = reached.gather(-1, found)
    begin = torch.where(found > 0, reached.gather(-1, (found - 1).clamp(min=0)), 0)
    within = ((wanted - begin) / (end - begin).clamp(min=torch.finfo(end.dtype).tiny)).clamp(0, 1)
    return found[..., 0], within[..., 0]


def edge_map(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Magnitude of the gradient over all channels of (B, C, H, W), averaged over the cells of a map of that size."""
    down = images[..., 1:, :-1] - images[..., :-1, :-1]  # (B, C, H − 1, W − 1)
    right = images[..., :-1, 1:] - images[..., :-1, :-1]
    magnitude = (down.square() + right.square()).sum(dim=1, keepdim=True).sqrt()
    return F.adaptive_avg_pool2d(magnitude, size)[:, 0]
