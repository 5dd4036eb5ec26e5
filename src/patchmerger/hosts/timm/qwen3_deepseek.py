"""timm's Qwen3 and DeepSeek encoders, which put tokens back into a grid, and their classifiers, with mergers."""

from __future__ import annotations

from typing import Any

from timm.models.deepseek_vit import DeepseekVitBlock
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.common import MergedFeatures, MergedTransformer, any_merging, refuse_projector, timm_blocks
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope


def describe_grid_encoder(model: Any) -> Host:
    """Describe a Qwen3 or DeepSeek encoder, or its classifier, without the projector that needs the grid."""
    encoder = getattr(model, "encoder", model)
    if getattr(encoder, "merger", None) is not None or getattr(encoder, "aligner", None) is not None:
        refuse_projector(model, "its projector joins neighbouring patches of the grid")
    return Host(
        blocks=timm_blocks(encoder, (EvaBlock, DeepseekVitBlock), nn.ModuleList),
        dim=encoder.embed_dim,
        inputs=BlockInputs(rope=Rope()),
        grid="varies",
        subclasses=[(encoder, MergedGridEncoder)],
    )


class MergedGridEncoder(MergedTransformer):
    """The Qwen3 and DeepSeek encoders, which reshape the tokens to (B, H, W, D) in the end.

    Merged ones come as (B, 1, M, D), so that what follows can pool or flatten them as before. Left to itself the
    reshape would fail, or pass by accident where H · W divides M · D.
    """

    def forward_features(self, x: Tensor) -> Tensor:
        """As timm has it, merged tokens as (B, 1, M, D)."""
        if not any_merging(self.blocks):
            return super().forward_features(x)  # type: ignore[no-any-return]
        self.tell_grid(x)
        # timm's own, past the subclasses, whose checks torch.compile does not follow
        intermediates = super(MergedFeatures, self).forward_intermediates  # type: ignore[misc]
        (tokens,) = intermediates(x, 1, norm=True, output_fmt="NLC", intermediates_only=True)
        return tokens[:, None]  # type: ignore[no-any-return]

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm has it, for sequences (NLC) and maps of what is not merged; final tokens as (B, 1, M, D)."""
        given = self.named_arguments(args, kwargs)
        taken, _ = self.taken_features(given)
        last = max(taken) if given.get("stop_early") else len(self.blocks) - 1
        if given.get("intermediates_only") or not any_merging(self.blocks[: last + 1]):
            return super().forward_intermediates(x, *args, **kwargs)
        wanted = sorted({*taken, last})
        sequences = {**given, "indices": wanted, "output_fmt": "NLC", "intermediates_only": True, "output_dict": False}
        tokens = dict(zip(wanted, super().forward_intermediates(x, **sequences), strict=True))
        features = [tokens[i] if given.get("output_fmt") == "NLC" else self._as_map(tokens[i], x) for i in taken]
        norm = nn.Identity() if given.get("norm") else getattr(self, "norm", nn.Identity())
        final = norm(tokens[last])[:, None]  # (B, 1, M, D)
        if given.get("output_dict"):
            return {"image_features": final, "image_intermediates": features}
        return final, features

    def _as_map(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Tokens that are not merged as a feature map, (B, N, D) → (B, D, H, W)."""
        height, width = self.patch_embed.dynamic_feat_size(x.shape[-2:])  # type: ignore[attr-defined]
        return tokens.transpose(1, 2).reshape(len(x), -1, height, width).contiguous()
