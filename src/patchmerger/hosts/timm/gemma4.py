"""timm's Gemma 4 encoder (images of several sizes in one batch, padded) and its classifier, with mergers."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.gemma4_vit import Gemma4Block, Gemma4VitClassifier
from torch import Tensor, nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.common import any_merging, refuse_projector, timm_blocks
from patchmerger.hosts.timm.naflex import MergedPaddedTransformer
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.blocks import any_centroid
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.subclassing import Subclass, host_class


def describe_gemma4(model: Any) -> Host:
    """Describe a Gemma 4 encoder, or its classifier, without the pooling that needs the grid."""
    encoder = getattr(model, "encoder", model)
    if encoder.global_pool == "soft":
        refuse_projector(model, "its 'soft' pooling averages neighbouring patches of the grid")
    subclasses: list[tuple[nn.Module, type[Subclass]]] = [(encoder, MergedGemma4Encoder)]
    if host_class(model) is Gemma4VitClassifier:
        subclasses.append((model, MergedGemma4Classifier))
    return Host(
        blocks=timm_blocks(encoder, (Gemma4Block,), nn.ModuleList),
        dim=encoder.embed_dim,
        inputs=BlockInputs(
            rope=Rope(("rope_cos", "rope_sin"), layout="cos, sin", leading="images"), padding="attn_mask"
        ),
        subclasses=subclasses,
    )


class MergedGemma4Encoder(MergedPaddedTransformer):
    """The Gemma 4 encoder: padding ends at the merge, for its pooling too."""

    global_pool: str

    def forward(self, x: Any, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """As timm has it; merged tokens are averaged without a mask."""
        if self.global_pool == "avg" and any_merging(self.blocks):
            return self.forward_features(x, patch_coord, patch_valid).mean(dim=1)
        self._check_order(x, patch_coord, patch_valid)
        return super().forward(x, patch_coord, patch_valid)  # type: ignore[misc, no-any-return]

    def forward_features(self, x: Any, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """As timm has it, for patches in the order of the grid."""
        self._check_order(x, patch_coord, patch_valid)
        return super().forward_features(x, patch_coord, patch_valid)  # type: ignore[no-any-return]

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it; ``patch_valid`` is that of the features which are given."""
        given = self.named_arguments(args, kwargs)
        self._check_order(x, given.get("patch_coord"), given.get("patch_valid"))
        return super().forward_intermediates(x, *args, **kwargs)

    def _check_order(self, x: Any, patch_coord: Tensor | None, patch_valid: Tensor | None) -> None:
        """Refuse patches in another order than row by row: the centroid is read off the table of a grid."""
        if isinstance(x, dict):
            patch_coord, patch_valid = x.get("patch_coord", patch_coord), x.get("patch_valid", patch_valid)
        if patch_coord is None or torch.compiler.is_compiling() or patch_coord.is_meta:
            return
        if not any_centroid(self.blocks):
            return
        real = (patch_coord != -1).any(dim=-1) if patch_valid is None else patch_valid  # (B, N)
        row, column = patch_coord.unbind(dim=-1)
        width = column.masked_fill(~real, -1).amax(dim=1, keepdim=True) + 1  # (B, 1)
        place = torch.arange(patch_coord.shape[1], device=patch_coord.device)
        if bool(((row * width + column != place) & real).any()):
            raise ValueError(
                "patch_coord gives patches in another order than row by row, padding last: the centroids of merged "
                "tokens cannot be found; sort them, or insert with positions='drop'"
            )


class MergedGemma4Classifier(Subclass):
    """The Gemma 4 classifier: padding ends at the merge, for its pooling too."""

    encoder: nn.Module

    def forward_head(self, x: Tensor, patch_valid: Tensor | None = None, pre_logits: bool = False) -> Tensor:
        """As timm has it, for tokens none of which is padding."""
        if any_merging(self.encoder.blocks):  # type: ignore[arg-type]
            patch_valid = None
        return super().forward_head(x, patch_valid, pre_logits)  # type: ignore[misc, no-any-return]
