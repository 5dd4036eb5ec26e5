"""A patch embedding that looks at the image through N windows at given places, not through a grid of patches."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.mechanism.placed_tokens import mark_placed
from patchmerger.mechanism.subclassing import Subclass
from patchmerger.mechanism.tracing import is_traced
from patchmerger.placing.placement import Placement


class PlacedEmbedding(Subclass):
    """timm's ``PatchEmbed`` on windows, placed by its child: the host's own projection and norm of what they show."""

    patchmerger_purpose = "placing"
    placement: Placement
    proj: nn.Module
    norm: nn.Module
    patch_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) → tokens (B, N, D), which know where they are.

        Raises:
            ValueError: Images of a size that the model does not take.
            TypeError: Symbolic tracing (torch.fx), in which sizes are not known.
        """
        if is_traced(x):
            raise TypeError(
                "a model with placed tokens cannot be traced symbolically (torch.fx): use torch.export.export, or "
                "patchmerger.unplace(model)"
            )
        grid = self._grid(x)
        size = (grid[0] * self.patch_size[0], grid[1] * self.patch_size[1])
        window = self.placement.settings.window or self.patch_size
        margin = (window[0] / size[0] / 2, window[1] / size[1] / 2)
        positions = self.placement(x, grid, margin)  # (B, N, 2)
        shown = sample_windows(x, positions, size=size, window=window, samples=self.patch_size)
        tokens = self.norm(self.proj(shown).flatten(2).transpose(1, 2))  # (B, N, D)
        return mark_placed(tokens, positions, grid)

    def _grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches in the images, which must be of a size that the host takes."""
        host, size = cast(Any, self), (x.shape[-2], x.shape[-1])
        if host.img_size is not None and host.strict_img_size and size != tuple(host.img_size):
            raise ValueError(f"images of {size[0]} × {size[1]} pixels, but the model takes {tuple(host.img_size)}")
        if any(pixels % patch for pixels, patch in zip(size, self.patch_size, strict=True)) and (
            not host.strict_img_size
        ):
            raise ValueError(f"images of {size[0]} × {size[1]} pixels must divide by the patch size {self.patch_size}")
        return cast(tuple[int, int], host.dynamic_feat_size(size))


def sample_windows(
    images: Tensor,
    positions: Tensor,
    *,
    size: tuple[int, int],
    window: tuple[int, int],
    samples: tuple[int, int],
) -> Tensor:
    """What N windows show of each image (B, C, H, W), side by side: (B, C, h, N · w), in the dtype of images.

    Sampled bilinearly, in at least float32, ``samples`` (h, w) times along each side: as often as a window has pixels,
    at the middle of each of them where it lies on the grid. A window that reaches beyond the image shows its outermost
    pixels there. ``positions``, the middles of windows (B, N, 2), are shares of ``size``, the height and width in
    pixels of what is seen of an image: those of its whole patches.

    Side by side, not one below the other: oneDNN's convolution in bf16 gives wrong numbers on processors with AMX where
    its output is one column wide.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    found = []
    for axis, pixels in enumerate(images.shape[-2:]):
        step = window[axis] / samples[axis]
        offsets = (torch.arange(samples[axis], device=images.device, dtype=dtype) + 0.5) * step - window[axis] / 2
        along = positions[..., axis, None].to(dtype) * size[axis] + offsets  # (B, N, samples), in pixels from the edge
        found.append(2 * along / pixels - 1)  # as grid_sample has it: −1 and 1 are the edges of the image
    shape = (*positions.shape[:2], *samples)
    rows, columns = found[0][..., :, None].expand(shape), found[1][..., None, :].expand(shape)
    places = torch.stack((columns, rows), dim=-1).transpose(1, 2).flatten(2, 3)  # (B, h, N · w, 2), column first
    shown = F.grid_sample(images.to(dtype), places, mode="bilinear", padding_mode="border", align_corners=False)
    return shown.to(images.dtype)
