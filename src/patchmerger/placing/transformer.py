"""A timm Vision Transformer whose tokens were placed: the position embeddings of the places that they have."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.hosts.timm.rotary import too_long_a_step
from patchmerger.mechanism.patch_grid import tell_grid
from patchmerger.mechanism.placed_tokens import between_patches, placed_tokens
from patchmerger.mechanism.rotary import place_table
from patchmerger.mechanism.subclassing import Subclass


class PlacedTransformer(Subclass):
    """``VisionTransformer``, ``VisionTransformerDistilled`` and ``Eva`` with placed tokens.

    The host's own ``_pos_embed`` runs on a grid of zeros: what comes out are its prefix tokens and its table of
    position embeddings for images of this size, which is interpolated at the places of the tokens.
    """

    patchmerger_purpose = "placing"
    blocks: nn.Module
    num_prefix_tokens: int
    dynamic_img_size: bool
    rope_mixed: bool

    def _pos_embed(self, x: Tensor) -> Any:
        """Tokens (B, N, D) → with prefix and position embeddings, (B, P + N, D); Eva gives rotary tables beside."""
        placed = placed_tokens(x)
        positions, (rows, columns) = placed.positions, placed.grid
        shape = (1, rows, columns) if self.dynamic_img_size else (1, rows * columns)
        embedded = super()._pos_embed(x.new_zeros(*shape, x.shape[-1]))  # type: ignore[misc]
        table, rope = embedded if isinstance(embedded, tuple) else (embedded, None)  # (1, P + rows · columns, D)
        prefix, table = table[:, : self.num_prefix_tokens], table[:, self.num_prefix_tokens :]
        x = torch.cat((prefix.expand(x.shape[0], -1, -1), x + _at(positions, table, placed.grid)), dim=1)
        tell_grid(self.blocks.children(), positions=positions, placed_in=placed.grid)
        if not isinstance(embedded, tuple):
            return x
        return x, None if rope is None else self._rotary(rope, positions, placed.grid)

    def _rotary(self, rope: Tensor, positions: Tensor, grid: tuple[int, int]) -> Any:
        """The rotary table of the tokens; one for each block where these have their own."""
        reason = too_long_a_step(self, grid)
        if reason is not None:
            raise ValueError(f"placed tokens cannot have rotary positions: {reason}, or patchmerger.unplace(model)")
        weights = between_patches(positions, grid)
        if getattr(self, "rope_mixed", False):
            return [place_table(table, weights) for table in rope]
        return place_table(rope, weights)

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, for sequences (NLC); a feature map (NCHW) of placed tokens is refused."""
        code = cast(Any, self.patchmerger_host_class).forward_intermediates.__code__
        given = {**dict(zip(code.co_varnames[2 : code.co_argcount], args, strict=False)), **kwargs}
        if given.get("output_fmt", "NCHW") == "NCHW":
            raise ValueError(
                "output_fmt ('NCHW') asks for feature maps, but the tokens are placed and have no place in a grid; ask "
                "for output_fmt='NLC'"
            )
        return super().forward_intermediates(x, *args, **kwargs)  # type: ignore[misc]

    def no_weight_decay(self) -> set[str]:
        """What timm names, and the learned offsets of positions."""
        return set(super().no_weight_decay()) | {"patch_embed.placement.offset"}  # type: ignore[misc]


def _at(positions: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings at ``positions``, (B, N, D): bilinear between the middles of patches, the outermost beyond.

    Positions are (B, N, 2); ``table`` is that of the patches, (1, rows · columns, D).
    """
    dtype = torch.promote_types(table.dtype, torch.float32)
    shown = table.reshape(1, *grid, -1).permute(0, 3, 1, 2).to(dtype).expand(positions.shape[0], -1, -1, -1)
    places = 2 * positions.flip(-1).to(dtype)[:, :, None] - 1  # (B, N, 1, 2), column first
    found = F.grid_sample(shown, places, mode="bilinear", padding_mode="border", align_corners=False)  # (B, D, N, 1)
    return found[..., 0].transpose(1, 2).to(table.dtype)
