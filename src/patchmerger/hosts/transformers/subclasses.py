"""transformers' models with a merger, besides their blocks: what counts on N tokens after a merge is mended."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from patchmerger.mechanism.blocks import any_centroid
from patchmerger.mechanism.patch_grid import needs_grid, tell_grid
from patchmerger.mechanism.subclassing import Subclass
from patchmerger.mechanism.tracing import is_traced


class NoBias(Subclass):
    """A module that computes a relative position bias: it gives none; its table stays, so state dicts do not change."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """No bias."""


class UnbiasedAttention(Subclass):
    """An attention that adds a relative position bias of its own where its attribute says so."""

    has_relative_position_bias = property(lambda _: False)  # a property hides what the instance says


class MergedTransformer(Subclass):
    """A Transformer that knows of no padding.

    Exporting, transformers gives the blocks a mask of its own, which hides nothing; so a user's is refused here.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; an attention mask is refused."""
        # The first two arguments are everywhere pixels and, at most, what of them is masked.
        mask = kwargs.get("attention_mask")
        if (mask is not None and not is_traced(mask)) or any(isinstance(value, Tensor) for value in args[2:]):
            raise ValueError(
                "attention_mask was given to a merged model, but it speaks of the tokens before the merge: call the "
                "model without it"
            )
        tell_grid_of_images(cast(nn.Module, self), kwargs.get("pixel_values", args[0] if args else None))
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class MergedRotaryTransformer(MergedTransformer):
    """DINOv3 and Sapiens 2, whose rotary phases run through two turns from one side of an image to the other."""

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; a grid so coarse that phases do not tell what is between two patches is refused."""
        model = cast(Any, self)
        height, width = grid_of_images(model, pixel_values)
        stretch = 1.0
        if model.training:  # where coordinates are scaled at random
            stretch = (model.config.pos_embed_rescale or 1.0) * (model.config.pos_embed_jitter or 1.0)
        if min(height, width) <= 4 * stretch and any_centroid(model.modules()):
            raise ValueError(
                f"pixel_values give {height} × {width} patches, whose rotary phases may differ by half a turn and more "
                f"from one to the next, so that a merged token has no centroid: use more than {4 * stretch:g} patches "
                "a side, or insert with positions='drop'"
            )
        return super().forward(pixel_values, *args, **kwargs)


# Where a Transformer keeps its blocks, in one version of transformers or another.
_BLOCKS = ("layers", "layer", "encoder.layers", "encoder.layer", "model.layer")


def list_of_blocks(transformer: Any) -> Any:
    """The list of a Transformer's blocks; ``None`` where there is none."""
    for path in _BLOCKS:
        found = transformer
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None


def grid_of_images(transformer: Any, pixel_values: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images (B, C, H, W)."""
    height, width = to_2tuple(transformer.config.patch_size)
    return pixel_values.shape[-2] // height, pixel_values.shape[-1] // width


def tell_grid_of_images(transformer: nn.Module, pixel_values: Any) -> None:
    """Tell mergers that must know it the grid of patches, for images; that of spectrograms stays as it is."""
    blocks = list_of_blocks(transformer)
    if needs_grid(blocks) and isinstance(pixel_values, Tensor) and pixel_values.ndim == 4:
        tell_grid(blocks, grid_of_images(transformer, pixel_values))


class UnmaskedHead(Subclass):
    """SigLIP 2's attention pooling: merged tokens hold no padding, so it sees no mask."""

    def forward(self, hidden_state: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, M, D) → (B, D)."""
        return super().forward(hidden_state)  # type: ignore[misc, no-any-return]


class _ShapesAndMask(NamedTuple):
    """What the classifier hands on in the place of the shapes, since its own pooling must not see the mask."""

    spatial_shapes: Tensor
    pixel_attention_mask: Tensor


class MergedSiglip2Classifier(Subclass):
    """SigLIP 2's classifier: its average runs over all merged tokens; only the tower may know of padding."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if pixel_attention_mask is not None:
            spatial_shapes = _ShapesAndMask(spatial_shapes, pixel_attention_mask)
        return super().forward(pixel_values, None, spatial_shapes, *args, **kwargs)  # type: ignore[misc]


class MergedSiglip2Tower(Subclass):
    """SigLIP 2's vision tower: takes the mask from where the classifier put it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; a mask other than one of padding is refused."""
        shapes = kwargs.get("spatial_shapes")
        if isinstance(shapes, _ShapesAndMask):
            # Versions of transformers name the mask differently; the classifier names it in its call.
            name = next(name for name in kwargs if name.endswith("attention_mask"))
            kwargs |= {"spatial_shapes": shapes.spatial_shapes, name: shapes.pixel_attention_mask}
        self._tell_places(
            kwargs.get("pixel_values", args[0] if args else None),
            kwargs.get("spatial_shapes", args[2] if len(args) > 2 else None),
        )
        masks = [value for name, value in kwargs.items() if name.endswith("attention_mask")] + list(args[1:2])
        for mask in masks:
            if mask is not None and mask.ndim != 2:
                raise ValueError(
                    f"pixel_attention_mask has shape {tuple(mask.shape)}, but a merged model needs (B, N), True = a "
                    "real patch: what else a mask says of N tokens is not true of merged ones"
                )
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def _tell_places(self, patches: Any, spatial_shapes: Any) -> None:
        """Tell mergers that must know it where patches (B, N, 3 p²) are: row by row, padding last."""
        blocks = list_of_blocks(self)
        if not needs_grid(blocks):
            return
        shape = spatial_shapes.to(patches.device)[:, None]  # (B, 1, 2)
        index = torch.arange(patches.shape[1], device=patches.device)  # (N,)
        place = torch.stack((index // shape[..., 1], index % shape[..., 1]), dim=-1)  # (B, N, 2)
        tell_grid(blocks, positions=(place + 0.5) / shape)
