"""timm's Vision Transformers with a relative position bias (BEiT, ``vit_relpos_…``), with mergers."""

from __future__ import annotations

from typing import Any, cast

from timm.models.beit import Block as BeitBlock
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock
from torch import nn

from patchmerger.hosts.host import Host, RelativeBias
from patchmerger.hosts.timm.common import MergedTransformer, patch_grid, timm_blocks, why_prefix_stays
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.subclassing import Subclass, attach, detach, mixin_of, subclassed_modules


def describe_beit(model: Any) -> Host:
    # The first block keeps its bias table whatever is merged, so it tells whether there is one.
    own = model.blocks[0].attn.relative_position_bias_table is not None
    shared = None if model.rel_pos_bias is None else "shared_rel_pos_bias"
    return _describe(model, (BeitBlock,), UnbiasedBeitAttention if own else None, shared)


def describe_relpos(model: Any) -> Host:
    own = model.blocks[0].attn.rel_pos is not None
    shared = None if model.shared_rel_pos is None else "shared_rel_pos"
    return _describe(model, (RelPosBlock, ResPostRelPosBlock), UnbiasedRelPosAttention if own else None, shared)


def _describe(
    model: Any, known: tuple[type[nn.Module], ...], unbiased: type[Subclass] | None, shared: str | None
) -> Host:
    """Describe a model with a bias of its own in each block, or one that all blocks share, or both."""
    return Host(
        blocks=timm_blocks(model, known, nn.ModuleList),
        dim=model.embed_dim,
        num_prefix_tokens=model.num_prefix_tokens,
        num_patches=model.patch_embed.num_patches,
        inputs=BlockInputs(bias=shared),
        biases=() if unbiased is None else (RelativeBias("attn", unbiased),),
        prefix_is_needed=why_prefix_stays(model),
        grid=patch_grid(model),
        subclasses=[(model, MergedBiasedTransformer)],
    )


class MergedBiasedTransformer(MergedTransformer):
    """Models with a relative position bias, whose tables follow the image size."""

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """As timm has it, also for the tables that blocks after the merge keep but do not use."""
        unbiased = [m for m in subclassed_modules(cast(nn.Module, self)) if isinstance(m, Unbiased)]
        mixins = [cast(type[Subclass], mixin_of(module)) for module in unbiased]
        detach(*unbiased)
        try:
            super().set_input_size(*args, **kwargs)  # type: ignore[misc]
        finally:
            for module, mixin in zip(unbiased, mixins, strict=True):
                attach(module, mixin)


class Unbiased(Subclass):
    """An attention that adds no relative position bias; its table stays, so that state dicts do not change."""


class UnbiasedBeitAttention(Unbiased):
    """BEiT's attention: what its class says of the table hides the parameter of that name."""

    relative_position_bias_table = None


class UnbiasedRelPosAttention(Unbiased):
    """The attention of timm's relative-position ViTs: what its class says of the bias hides the module."""

    rel_pos = None
