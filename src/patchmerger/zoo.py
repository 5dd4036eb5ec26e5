"""The paper's Vision Transformers with a merger, by name: ``timm.create_model("patchmerger_base_patch16_224")``.

Importing this module registers them with timm; the command line does so by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    build_model_with_cfg,
    get_arch_pretrained_cfgs,
    is_model,
    register_model,
)
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.options import Norm, Prefix
from patchmerger.presets import preset


@dataclass(frozen=True)
class Size:
    """The size of a Vision Transformer with a class token; patches and images are square, their sides in pixels."""

    patch_size: int
    image_size: int
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


# Ti, S: arXiv 2106.10270; B, L, H: arXiv 2010.11929, table 1; G: arXiv 2106.04560, table 2 (timm's "gigantic").
# The last four, of 64 tokens, are for small images; timm has no plain model of their size.
# fmt: off
SIZES: dict[str, Size] = {
    # name                              patch image width depth heads  MLP
    "patchmerger_tiny_patch16_224":     Size(16,  224,   192,  12,   3,   768),
    "patchmerger_small_patch32_224":    Size(32,  224,   384,  12,   6,  1536),
    "patchmerger_small_patch16_224":    Size(16,  224,   384,  12,   6,  1536),
    "patchmerger_base_patch32_224":     Size(32,  224,   768,  12,  12,  3072),
    "patchmerger_base_patch16_224":     Size(16,  224,   768,  12,  12,  3072),
    "patchmerger_large_patch32_224":    Size(32,  224,  1024,  24,  16,  4096),
    "patchmerger_large_patch16_224":    Size(16,  224,  1024,  24,  16,  4096),
    "patchmerger_huge_patch14_224":     Size(14,  224,  1280,  32,  16,  5120),
    "patchmerger_gigantic_patch14_224": Size(14,  224,  1664,  48,  16,  8192),
    "patchmerger_tiny_patch4_32":       Size( 4,   32,   192,  12,   3,   768),
    "patchmerger_small_patch4_32":      Size( 4,   32,   384,  12,   6,  1536),
    "patchmerger_tiny_patch8_64":       Size( 8,   64,   192,  12,   3,   768),
    "patchmerger_small_patch8_64":      Size( 8,   64,   384,  12,   6,  1536),
}
# fmt: on
"""Every model of this module by name."""


def plain_name(name: str) -> str | None:
    """Name timm's plain model of the same size; ``None`` for the sizes for small images, which timm does not have."""
    plain = name.replace("patchmerger_", "vit_", 1)
    return plain if is_model(plain) else None


def without_merger(name: str) -> dict[str, Any]:
    """What to give to ``timm.create_model`` for the plain model; nothing where it is none of the :data:`SIZES`."""
    return {"num_tokens": 0} if name.split(".")[0] in SIZES else {}


def create(
    name: str,
    *,
    pretrained: bool = False,
    num_tokens: int | Sequence[int] = 8,
    after: int | Sequence[int] | None = None,
    prefix: Prefix = "keep",
    preset: str = "default",
    norm: Norm | None = None,
    scale: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a Vision Transformer of one of the :data:`SIZES` with its merger: what ``timm.create_model`` calls.

    Pretrained weights are those of timm's plain model of the same size; the merger starts untrained then, and
    **must be trained**. Weights with a merger are loaded whole.

    Args:
        name: One of :data:`SIZES`; ``timm.create_model`` also takes ``"NAME.TAG"``, with timm's tags.
        pretrained: Load weights: those of the tag, or a file's, with ``pretrained_cfg_overlay={"file": PATH}``.
        num_tokens: Tokens that go on, M; a sequence for several mergers. 0 leaves the merger out, whatever the
            arguments below say: the plain model of this size.
        after: The block to merge after, counted from 1; half the depth by default. A sequence for several.
        prefix: Whether the class token stays as it is (``"keep"``) or is merged too; see :func:`~patchmerger.insert`.
        preset: A named setting of the merger; see :data:`~patchmerger.PRESETS`.
        norm: Where to normalise, in place of the preset's; see :class:`~patchmerger.PatchMerger`.
        scale: Factor on the scores, in place of the preset's.
        **kwargs: Arguments of timm: ``img_size``, ``num_classes``, ``drop_path_rate``, ``global_pool`` and so on.

    Returns:
        A timm ``VisionTransformer`` with its merger.

    Raises:
        ValueError: An option of the merger that does not fit, or weights with other mergers than the model has.
        TypeError: An argument that timm does not know.
        RuntimeError: ``pretrained``, but timm has no weights of this size, or they do not fit.
    """
    size = SIZES[name]
    options = {"num_tokens": num_tokens, "after": after, "prefix": prefix, "preset": preset}
    arguments = {
        "patch_size": size.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mlp_ratio": size.mlp_dim / size.width,
    }
    model: nn.Module = build_model_with_cfg(
        partial(_merged, {**options, "norm": norm, "scale": scale}),
        name,
        pretrained,
        pretrained_filter_fn=_with_mergers,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**arguments, **kwargs},
    )
    return model


def _merged(merge: dict[str, Any], **kwargs: Any) -> nn.Module:
    """The model, merged before any weights are loaded: so that merged weights fit as well."""
    model = VisionTransformer(**kwargs)
    if merge["num_tokens"] == 0:
        return model
    given = {key: merge[key] for key in ("norm", "scale") if merge[key] is not None}
    options = preset(merge["preset"], model.embed_dim) | given
    return insert(model, merge["num_tokens"], merge["after"], prefix=merge["prefix"], **options)


def _with_mergers(weights: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Weights as timm adapts them to the model; where they are a plain model's, with the mergers as they start.

    Mergers are compared here, for where the number of classes differs timm would leave out what does not fit.
    """
    weights = checkpoint_filter_fn(weights, model)
    own, theirs = _of_mergers(model.state_dict()), _of_mergers(weights)
    if not theirs:
        return weights | own
    ours, given = (", ".join(f"{n} {tuple(t.shape)}" for n, t in sorted(m.items())) for m in (own, theirs))
    if ours != given:
        raise ValueError(f"the weights have {given}, but the model has {ours or 'none'}: see num_tokens, after, norm")
    return weights


def _of_mergers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if ".merger." in name}


def _weights(name: str) -> DefaultCfg:
    """The plain model's weights by tag, the default one first; none for a size that timm does not have."""
    plain = plain_name(name)
    if plain is not None:
        tags = {full.partition(".")[2]: cfg for full, cfg in get_arch_pretrained_cfgs(plain).items()}
    else:
        size, half = SIZES[name].image_size, (0.5, 0.5, 0.5)
        inputs: dict[str, Any] = {"input_size": (3, size, size), "fixed_input_size": True, "crop_pct": 1.0}
        inputs |= {"mean": half, "std": half, "first_conv": "patch_embed.proj", "classifier": "head"}
        tags = {"untrained": PretrainedCfg(**inputs)}
    return DefaultCfg(tags=deque(tags), cfgs=tags, is_pretrained=any(cfg.has_weights for cfg in tags.values()))


def _register(name: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(name, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{name}: {SIZES[name]}; see :func:`create`."
    registered: Callable[..., nn.Module] = register_model(entrypoint)
    return registered


default_cfgs = {name: _weights(name) for name in SIZES}  # where timm looks for them
globals().update({name: _register(name) for name in SIZES})  # timm also lists the names in __all__
