"""timm's NaFlexVit (images of several sizes in one batch, padded to one number of patches), with mergers."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.common import PLAIN_BLOCKS, MergedTransformer, any_merging, timm_blocks, why_prefix_stays
from patchmerger.hosts.timm.rotary import DROPPED_PATCHES, refuse_long_step
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.tracing import is_traced


def describe_naflex(model: Any) -> Host:
    return Host(
        blocks=timm_blocks(model, (*PLAIN_BLOCKS, EvaBlock), nn.Sequential),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=None,
        inputs=BlockInputs(padding="attn_mask", rope=None if model.rope is None else Rope()),
        no_centroid=None if model.patch_drop is None else DROPPED_PATCHES,
        prefix_is_needed=why_prefix_stays(model),
        grid="varies" if model.patch_drop is None else None,
        subclasses=[(model, MergedNaFlexVit)],
    )


class MergedPaddedTransformer(MergedTransformer):
    """Models that tell in ``patch_valid`` which tokens are real: after a merge, all are."""

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it; ``patch_valid`` is that of the features which are given."""
        taken, merged = self.taken_features(self.named_arguments(args, kwargs))
        output = super().forward_intermediates(x, *args, **kwargs)
        if not (merged and isinstance(output, dict) and "patch_valid" in output):
            return output
        features = output["image_intermediates"]
        if len(merged) < len(taken) or len({tokens.shape[1] for tokens in features}) > 1:
            raise ValueError(
                f"indices ({taken}) lie on both sides of a merge, so that no one patch_valid fits their features; "
                "take them in several calls, or without output_dict"
            )
        return {**output, "patch_valid": all_real(features[0])}


def all_real(tokens: Tensor) -> Tensor:
    """(B, M) bool, True everywhere, for merged ``tokens`` (B, M, D)."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


class MergedNaFlexVit(MergedPaddedTransformer):
    """``NaFlexVit``: padding ends at the merge, for what follows the blocks too."""

    num_prefix_tokens: int
    rope: nn.Module | None
    embeds: Any

    def forward_features(
        self,
        patches: Tensor,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """As timm has it; the ``patch_valid`` that comes back is that of the merged tokens."""
        _refuse_mask(attn_mask)
        self._check_steps(patches, patch_coord)
        features = super().forward_features(patches, patch_coord=patch_coord, patch_valid=patch_valid)
        if isinstance(features, dict) and features["patch_valid"] is not None and any_merging(self.blocks):
            return {**features, "patch_valid": all_real(features["patches"][:, self.num_prefix_tokens :])}
        return features

    def forward_intermediates(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As timm has it; ``patch_valid`` is that of the features which are given."""
        given = {**self.named_arguments(args, kwargs), **(x if isinstance(x, dict) else {})}
        _refuse_mask(given.get("attn_mask"))
        self._check_steps(given.get("patches", x), given.get("patch_coord"))
        return super().forward_intermediates(x, *args, **kwargs)

    def forward_head(self, patches: Tensor, pre_logits: bool = False, patch_valid: Tensor | None = None) -> Tensor:
        """As timm has it, for tokens none of which is padding."""
        if any_merging(self.blocks):
            patch_valid = None
        return super().forward_head(patches, pre_logits, patch_valid)  # type: ignore[misc, no-any-return]

    def _check_steps(self, patches: Tensor, patch_coord: Tensor | None) -> None:
        """Refuse images with too few patches for the centroids of merged tokens."""
        if self.rope is None or is_traced(patches):
            return
        if patch_coord is None:
            sizes = [self.embeds.dynamic_feat_size(patches.shape[-2:])]
        elif torch.compiler.is_compiling() or patch_coord.is_meta:
            return
        else:
            sizes = (patch_coord.amax(dim=1) + 1).tolist()
        for height, width in sizes:
            refuse_long_step(self, (height, width))


def _refuse_mask(attn_mask: Tensor | None) -> None:
    if attn_mask is not None and not is_traced(attn_mask):
        raise ValueError(
            "attn_mask was given to a merged NaFlexVit, but it may hide more than padding, which a merge would undo; "
            "give patch_valid alone: the mask of the padding is made of it"
        )
