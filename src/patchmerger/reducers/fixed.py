"""Fixed radial patterns: the tokens nearest to the centre of the image, whatever it shows (arXiv 2308.04657)."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from patchmerger.merger import check_positions
from patchmerger.reducers.reducer import Need
from patchmerger.reducers.selecting import Selecting, first_by

Distance: TypeAlias = Literal["l1", "l2", "linf"]
"""A norm: the sum of the absolute values, the root of the sum of squares, or the largest absolute value."""


class FixedPattern(Selecting):
    """Keep the M tokens nearest to the centre of the image: lowest ``‖p_n − (½, ½)‖`` by a norm.

    p_n is the place of token n, (row, column), each from 0 to 1; a pattern is a diamond (``"l1"``), a disc (``"l2"``)
    or a square (``"linf"``), stretched with the image. It sees no content and learns nothing: a floor, and a measure of
    how much of a data set sits in the middle of its images.

    Exactly M tokens are kept: of those equally far from the centre, the first in raster order. (The paper takes whole
    rings, and so whichever number comes nearest to M.)

    Args:
        num_tokens: Tokens that go on, M.
        distance: The norm.

    Source: Haurum, Escalera, Taylor and Moeslund, *Which Tokens to Use?*, arXiv 2308.04657, section 3.
    """

    needs: ClassVar[tuple[Need, ...]] = ("positions",)

    def __init__(self, num_tokens: int, distance: Distance = "l2") -> None:
        super().__init__(num_tokens)
        if distance not in get_args(Distance):
            raise ValueError(f"distance ({distance!r}) must be one of {', '.join(map(repr, get_args(Distance)))}")
        self.distance: Distance = distance

    def kept(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """Indices of the kept tokens, (B, M), or (1, M) where they are the same for all images."""
        if positions is None:
            raise ValueError(
                f"positions must be given to a fixed pattern: (N, 2) or (B, N, 2), from 0 to 1, for x {tuple(x.shape)}"
            )
        check_positions(x, positions)
        return _nearest(positions, mask, self.num_tokens, self.distance)


_DIGITS = 5  # of a distance that count: places that are equally far by symmetry differ by rounding


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _nearest(positions: Tensor, mask: Tensor | None, num_tokens: int, distance: Distance) -> Tensor:
    """Indices (B, M) or (1, M) of the tokens nearest to the centre, for positions (N, 2) or (B, N, 2)."""
    offset = (positions.float() - 0.5).abs()
    if distance == "l1":
        radius = offset.sum(dim=-1)
    else:
        radius = offset.square().sum(dim=-1).sqrt() if distance == "l2" else offset.amax(dim=-1)
    radius = (radius * 10**_DIGITS).round()
    return first_by(radius[None] if positions.ndim == 2 else radius, num_tokens, mask)
