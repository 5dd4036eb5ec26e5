"""What all of timm's Vision Transformers have in common: a list of blocks, prefix tokens, and features on request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NoReturn, cast

import torch
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import Tensor, nn

from patchmerger.hosts.host import UnsupportedModelError, known_blocks
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.patch_grid import needs_grid, tell_grid
from patchmerger.mechanism.subclassing import Subclass, host_class
from patchmerger.mechanism.tracing import is_traced
from patchmerger.prior import grid_positions

# The blocks of VisionTransformer: they are given the tokens and, if anything, a mask.
PLAIN_BLOCKS = (Block, ResPostBlock, ParallelScalingBlock, DiffParallelScalingBlock, ParallelThingsBlock)


def timm_blocks(model: Any, known: tuple[type[nn.Module], ...], container: type[nn.Module]) -> list[nn.Module]:
    """The blocks of a timm model, refused where another tool wrapped or exchanged them; see :func:`known_blocks`."""
    return known_blocks(model, model.blocks, known, "timm", container, nn.Sequential, nn.ModuleList)


def why_prefix_stays(model: Any) -> str | None:
    """Why the prefix tokens of a model whose blocks or pooling count them must stay apart; ``None`` without any."""
    if model.num_prefix_tokens == 0:
        return None
    return f"{host_class(model).__name__} tells its first {model.num_prefix_tokens} tokens from patches by their place"


def patch_grid(model: Any, *, varies: bool = False) -> tuple[int, int] | Literal["varies"] | None:
    """Rows and columns of the patches of ``model``; ``None`` where some are left out in training."""
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
        return None
    return "varies" if varies else tuple(model.patch_embed.grid_size)


def refuse_projector(model: Any, reason: str) -> NoReturn:
    """Refuse an encoder with a part that needs the grid of patches."""
    way_out = "encoder_pool=''" if hasattr(model, "encoder") else "global_pool='avg'"
    raise UnsupportedModelError(model, reason, f"make it with {way_out}", "grid")


class MergedFeatures(Subclass):
    """A model that gives the features of its ``blocks`` on request."""

    blocks: nn.Sequential | nn.ModuleList

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As its library has it, for sequences (NLC); a feature map (NCHW) of merged tokens is refused."""
        self.taken_features(self.named_arguments(args, kwargs))
        return super().forward_intermediates(x, *args, **kwargs)  # type: ignore[misc]

    def named_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of ``forward_intermediates`` after the image, by name."""
        host: Any = self.patchmerger_host_class
        code = host.forward_intermediates.__code__
        return {**dict(zip(code.co_varnames[2 : code.co_argcount], args, strict=False)), **kwargs}

    def taken_features(self, given: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Block indices whose features ``forward_intermediates`` gives, and those of them that are merged.

        Raises:
            ValueError: It cannot give them with these arguments.
        """
        taken, _ = feature_take_indices(len(self.blocks), given.get("indices"))
        merging = [i for i, block in enumerate(self.blocks) if is_merging(block)]
        merged = sorted(i for i in taken if merging and i >= merging[0])
        if merged and given.get("output_fmt", "NCHW") == "NCHW":
            raise ValueError(
                f"output_fmt ('NCHW') asks for feature maps of block indices {merged}, but tokens are merged after "
                f"block index {merging[0]} and have no place in a grid; ask for output_fmt='NLC', or take "
                f"indices below {merging[0]}"
            )
        self.check_intermediates(merged)
        return sorted(taken), merged

    def check_intermediates(self, merged: list[int]) -> None:
        """Refuse features of the ``merged`` block indices that this model cannot give."""

    def no_weight_decay(self) -> set[str]:
        """What its library names, and what of the mergers decay would pull towards average pooling."""
        names: set[str] = set(super().no_weight_decay())  # type: ignore[misc]
        for path, module in cast(nn.Module, self).named_modules():
            if is_merging(module) and hasattr(module.merger, "no_weight_decay"):
                names |= {f"{path}.merger.{name}" for name in cast(Any, module.merger).no_weight_decay()}
        return names


class MergedTransformer(MergedFeatures):
    """Any timm model with a list of ``blocks``."""

    def forward_features(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, with the grid of patches told to located queries."""
        self.tell_grid(x, kwargs.get("patch_coord"))
        return super().forward_features(x, *args, **kwargs)  # type: ignore[misc]

    def tell_grid(self, x: Any, patch_coord: Tensor | None = None) -> None:
        """Tell mergers that must know it where patches are.

        ``x`` are images (B, C, H, W), or patches as NaFlex has them; ``patch_coord`` is row and column of each patch,
        (B, N, 2), where the images of a batch differ in size.
        """
        if not needs_grid(self.blocks):
            return
        if isinstance(x, dict):
            x, patch_coord = x["patches"], x.get("patch_coord", patch_coord)
        embed = cast(Any, getattr(self, "patch_embed", None) or getattr(self, "embeds", None))
        if is_traced(x):
            ratio = tuple(getattr(embed, "feature_ratio", (1, 1)))
            places = _traced_places(x, patch_coord, ratio, tuple(embed.patch_size), embed.dynamic_img_pad)
            tell_grid(self.blocks, positions=places)
        elif patch_coord is not None:
            tell_grid(self.blocks, positions=_places(patch_coord))
        else:
            tell_grid(self.blocks, embed.dynamic_feat_size(x.shape[-2:]))

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, for sequences (NLC), with the grid of patches told to located queries."""
        self.tell_grid(x, self.named_arguments(args, kwargs).get("patch_coord"))
        return super().forward_intermediates(x, *args, **kwargs)


def _places(patch_coord: Tensor) -> Tensor:
    """Places (B, N, 2), from 0 to 1, of patches by their row and column (B, N, 2)."""
    return (patch_coord + 0.5) / (patch_coord.amax(dim=1, keepdim=True) + 1)


@torch.fx.wrap  # one step of a graph that is traced symbolically, where the size of images is open
def _traced_places(
    x: Tensor, patch_coord: Tensor | None, ratio: tuple[int, int], patch_size: tuple[int, int], pads: bool
) -> Tensor:
    """Places of the patches of images (B, C, H, W), of which ``ratio`` pixels a side come to a patch embedding as one.

    Or, where ``patch_coord`` is given, of patches (B, N, p).
    """
    if patch_coord is not None:
        return _places(patch_coord)
    rows, columns = (
        (size // scale + (side - 1 if pads else 0)) // side
        for size, scale, side in zip(x.shape[-2:], ratio, patch_size, strict=True)
    )
    return grid_positions((rows, columns), device=x.device)


def any_merging(blocks: Iterable[nn.Module]) -> bool:
    """Whether tokens are merged after one of ``blocks``; those that merge can be cut off a model."""
    return any(is_merging(block) for block in blocks)
