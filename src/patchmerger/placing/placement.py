"""The module that chooses where the tokens of each image are; it becomes a child of the patch embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.placing.points import (
    drawn_to,
    edge_map,
    random_patches,
    sobol_points,
    tile_middles,
    toward_center,
    uniform_points,
)
from patchmerger.placing.settings import PlacingSettings
from patchmerger.prior import grid_positions

_CELLS = 2  # of a map of edges, along each side of a patch
_RANDOM = ("uniform", "gaussian")
_SOBOL = ("sobol", "edges", "saliency")


class Placement(nn.Module):
    """Positions of N tokens in each image, by one of the samplers of :data:`~patchmerger.placing.settings.Sampler`.

    In evaluation the same positions, or the same function of the image, each time. In training the random samplers
    draw anew for each image, and a Sobol sequence is shifted by a random step for each image (modulo 1), from torch's
    global generator of the images' device.

    Args:
        settings: Number, sampler, seed and so on.
        grid: Rows and columns of patches in the images that the model is made for.
        positions: (N, 2), for the sampler "given"; ``None`` where they are given for each batch.
        device: Where points are made.
        dtype: Of the offsets of "learned".

    Attributes:
        points: (N, 2), what positions are made of, in at least float32 whatever dtype the model is moved to; ``None``
            for the sampler "given" without positions.
        offset: Of "learned": added to the logits of the points, (N, 2), so that no token leaves the image.
        given: Positions of the next batches, (N, 2) or (B, N, 2), which go before all others.
        saliency: Maps of the next batches, (h, w) or (B, h, w).
    """

    points: Tensor | None
    offset: nn.Parameter | None

    def __init__(
        self,
        settings: PlacingSettings,
        grid: tuple[int, int],
        positions: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        points = positions if settings.sampler == "given" else _points(settings, grid)
        self.register_buffer("points", None if points is None else points.detach().to(device, copy=True))
        learned = settings.sampler == "learned"
        self.offset = nn.Parameter(torch.zeros(settings.num_tokens, 2, device=device, dtype=dtype)) if learned else None
        self.given: Tensor | None = None
        self.saliency: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, N."""
        return self.settings.num_tokens

    def forward(self, images: Tensor, grid: tuple[int, int], margin: tuple[float, float]) -> Tensor:
        """Positions (B, N, 2) of the tokens of ``images`` (B, C, H, W), in at least float32.

        ``grid`` are rows and columns of patches that the plain model would cut them into, ``margin`` how near to an
        edge of the image, as a share of it, the middle of a window can be that lies in it.

        Raises:
            ValueError: Positions or a saliency map are missing, or of another shape.
        """
        dtype = torch.promote_types(images.dtype, torch.float32)
        if self.given is not None:
            return self._of_batch(self.given, images, dtype)
        if self.settings.sampler == "given":
            if self.points is None:
                raise ValueError(
                    "positions must be given for this model: with patchmerger.placing.positions_given(model, "
                    "positions), or place(model, positions=…) for all images"
                )
            return self._of_batch(self.points, images, dtype)
        found = self._sampled(images, grid, margin, dtype).unbind(dim=-1)
        low = [min(each, 0.5) for each in margin]
        positions = torch.stack([p.clamp(m, 1 - m) for p, m in zip(found, low, strict=True)], dim=-1)
        return positions.expand(images.shape[0], -1, -1)

    def _sampled(
        self, images: Tensor, grid: tuple[int, int], margin: tuple[float, float], dtype: torch.dtype
    ) -> Tensor:
        """Positions (B or 1, N, 2) by the sampler, those of whole patches for as many tokens as there are patches."""
        sampler = self.settings.sampler
        if sampler in ("grid", "center", "learned"):
            points = self._tiles(grid, images, dtype)
            if sampler == "center":
                points = toward_center(points, self.settings.std)
            return points if self.offset is None else torch.sigmoid(torch.logit(points) + self.offset.to(dtype))
        if sampler == "subset":
            return self._patches(grid, images, dtype)
        points = self._uniform(images, dtype)
        if sampler == "gaussian":
            points = toward_center(points, self.settings.std)
        elif sampler in ("edges", "saliency"):
            with torch.no_grad():
                return drawn_to(self._density(images, grid).to(dtype), points, self.settings.uniform_share)
        inside = [m + (1 - 2 * m) * p for p, m in zip(points.unbind(dim=-1), margin, strict=True)]
        return torch.stack(inside, dim=-1)  # every window in the image

    def _tiles(self, grid: tuple[int, int], images: Tensor, dtype: torch.dtype) -> Tensor:
        """Middles of tiles, (1, N, 2); those of patches as exactly as ``dtype`` can say them."""
        if self.num_tokens == grid[0] * grid[1]:
            return grid_positions(grid, device=images.device, dtype=dtype)[None]
        return self._known(dtype)

    def _known(self, dtype: torch.dtype) -> Tensor:
        """The points that were made with the module, (1, N, 2)."""
        if self.points is None:
            raise ValueError(f"sampler ({self.settings.sampler!r}) has no points: place the tokens anew")
        return self.points.to(dtype)[None]

    def _uniform(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Uniform points, (1, N, 2) in evaluation; in training others for each image, (B, N, 2)."""
        if not self.training:
            return self._known(dtype)
        if self.settings.sampler in _SOBOL:
            shift = torch.rand(images.shape[0], 1, 2, device=images.device, dtype=dtype)
            return (self._known(dtype) + shift) % 1
        return torch.rand(images.shape[0], self.num_tokens, 2, device=images.device, dtype=dtype)

    def _patches(self, grid: tuple[int, int], images: Tensor, dtype: torch.dtype) -> Tensor:
        """Middles of patches drawn without replacement, alike in evaluation: (1, N, 2), in training (B, N, 2)."""
        if not self.training:
            of_axis = zip(self._known(dtype).unbind(dim=-1), grid, strict=True)
            return torch.stack([((p * size).floor() + 0.5) / size for p, size in of_axis], dim=-1)
        order = torch.rand(images.shape[0], grid[0] * grid[1], device=images.device).argsort(dim=1)
        drawn = order[:, : self.num_tokens].sort(dim=1).values
        return grid_positions(grid, device=images.device, dtype=dtype)[drawn]  # (B, N, 2)

    def _density(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """What edges or the caller's map say of where to look, (B, h, w)."""
        if self.settings.sampler == "edges":
            return edge_map(images.float(), (_CELLS * grid[0], _CELLS * grid[1]))
        if self.saliency is None:
            raise ValueError(
                "a saliency map must be given for this model: with patchmerger.placing.saliency_given(model, map)"
            )
        sizes = tuple(images.shape[-2:]), grid
        if tuple(self.saliency.shape[-2:]) not in sizes:
            raise ValueError(
                f"saliency {tuple(self.saliency.shape)} must have the height and width of the images {sizes[0]} or "
                f"the rows and columns of their patches {sizes[1]}"
            )
        maps = self.saliency.to(images.device)
        if maps.ndim == 3 and len(maps) != len(images):
            raise ValueError(f"saliency {tuple(maps.shape)} must be one map, or one for each of {len(images)} images")
        return maps.expand(images.shape[0], -1, -1).float()

    def _of_batch(self, positions: Tensor, images: Tensor, dtype: torch.dtype) -> Tensor:
        """Positions that were given, (B, N, 2)."""
        if positions.ndim == 3 and len(positions) != len(images):
            raise ValueError(
                f"positions {tuple(positions.shape)} must be (N, 2), or (B, N, 2) for the {len(images)} images"
            )
        return positions.to(images.device, dtype).expand(images.shape[0], -1, -1)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Placement:
        """Move everything, but leave points in float32 where the model goes to half precision: 1/256 is a pixel."""
        before = self.points
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        if before is not None and self.points is not None and self.points.dtype.itemsize < 4:
            self.points = before.to(self.points.device)
        return self

    def extra_repr(self) -> str:
        """What tells it from others."""
        return f"num_tokens={self.num_tokens}, sampler={self.settings.sampler!r}"


def _points(settings: PlacingSettings, grid: tuple[int, int]) -> Tensor:
    """What the positions of a sampler are made of, (N, 2)."""
    if settings.sampler == "subset":
        return grid_positions(grid)[random_patches(settings.num_tokens, grid[0] * grid[1], settings.seed)]
    if settings.sampler in _RANDOM:
        return uniform_points(settings.num_tokens, settings.seed)
    if settings.sampler in _SOBOL:
        return sobol_points(settings.num_tokens, settings.seed)
    return tile_middles(settings.num_tokens, grid)
