"""Tiny models of timm's families, and what a merge does to them, computed without the library under test."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm.layers.pos_embed_sincos as sincos
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from conftest import make_images, make_timm

DEPTH, GRID = 4, (6, 6)
NUM_PATCHES = GRID[0] * GRID[1]
_WIDTH = {"patch_size": 8, "embed_dim": 32, "depth": DEPTH, "num_heads": 2, "num_classes": 5}
_SIZE = {**_WIDTH, "img_size": 48}
_GEMMA = {**_SIZE, "head_dim": 16, "intermediate_size": 48, "position_embedding_size": 12}
_QWEN = {**_SIZE, "mlp_ratio": 2.0, "pos_embed_grid_size": 5}


@dataclass(frozen=True)
class Family:
    """How to make a tiny model, and what its blocks see.

    Attributes:
        architecture: timm's name.
        arguments: Arguments beside the sizes.
        prefix: Tokens before the patches.
        positions: What is asked of ``insert``.
        sizes: The sizes.
    """

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)
    prefix: int = 0
    positions: str | None = None
    sizes: Mapping[str, Any] = field(default_factory=lambda: _SIZE)

    @property
    def rope(self) -> bool:
        return self.positions == "centroid"


def _rope(architecture: str, prefix: int = 0, sizes: Mapping[str, Any] = _SIZE, **arguments: Any) -> Family:
    return Family(architecture, arguments, prefix, "centroid", sizes)


def _bias(architecture: str, prefix: int = 0, **arguments: Any) -> Family:
    return Family(architecture, arguments, prefix, "drop")


def _naflex(prefix: int = 0, rope: str = "", **arguments: Any) -> Family:
    arguments = {"rope_type": rope, "class_token": False, "reg_tokens": 0, **arguments}
    positions = "centroid" if rope else None
    return Family("naflexvit_base_patch16_gap", arguments, prefix, positions, _WIDTH)


FAMILIES: dict[str, Family] = {
    "EVA": Family("eva_giant_patch14_224", {"mlp_ratio": 2.0}, prefix=1),
    "EVA-02": _rope("eva02_small_patch14_224", prefix=1),
    "EVA-02 CLIP": _rope("eva02_base_patch16_clip_224", prefix=1),
    "EVA-02 post-norm": Family("eva02_enormous_patch14_clip_224", {"mlp_ratio": 2.0}, prefix=1),
    "RoPE axial": _rope("vit_small_patch16_rope_224", prefix=1),
    "RoPE axial, absolute": _rope("vit_small_patch16_rope_ape_224", prefix=1),
    "RoPE axial, registers, average": _rope("vit_medium_patch16_rope_reg1_gap_256", prefix=1),
    "RoPE mixed": _rope("vit_small_patch16_rope_mixed_224", prefix=1),
    "RoPE mixed, absolute": _rope("vit_small_patch16_rope_mixed_ape_224", prefix=1),
    "RoPE mrope": _rope("vit_small_patch16_rope_224", prefix=1, rope_type="mrope", rope_grid_indexing="ij"),
    "Perception Encoder": _rope(
        "vit_pe_core_small_patch16_384", prefix=1, ref_feat_shape=(9, 9), attn_pool_num_heads=2
    ),
    "Perception Encoder, no prefix": _rope(
        "vit_pe_spatial_gigantic_patch14_448", mlp_ratio=2.0, ref_feat_shape=(12, 12)
    ),
    "DINOv3": _rope("vit_small_patch16_dinov3", prefix=5),
    "DINOv3, biases": _rope("vit_small_plus_patch16_dinov3_qkvb", prefix=5),
    "Sapiens 2": _rope("vit_base_patch16_sapiens2", prefix=9, num_kv_heads=(2, 1, 1, 2)),
    "BEiT": _bias("beit_base_patch16_224", prefix=1),
    "BEiT, shared bias": _bias("beit_base_patch16_224", prefix=1, use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    "BEiT, both biases": _bias("beitv2_base_patch16_224", prefix=1, use_shared_rel_pos_bias=True),
    "BEiT, absolute": Family("beit_base_patch16_224", {"use_rel_pos_bias": False, "use_abs_pos_emb": True}, prefix=1),
    "relative": _bias("vit_relpos_small_patch16_224"),
    "relative, class token": _bias("vit_relpos_medium_patch16_cls_224", prefix=1),
    "relative, post-norm": _bias("vit_relpos_small_patch16_rpn_224"),
    "relative, tables": _bias("vit_relpos_base_patch16_clsgap_224", prefix=1, rel_pos_type="bias"),
    "relative, shared": _bias("vit_srelpos_small_patch16_224", rel_pos_dim=8),
    "CaiT": Family("cait_xxs24_224"),
    "NaFlex average": _naflex(reg_tokens=2, prefix=2),
    "NaFlex MAP": _naflex(global_pool="map", fc_norm=False),
    "NaFlex class token": _naflex(1, class_token=True, global_pool="token", fc_norm=False),
    "NaFlex parallel": _naflex(block_fn=ParallelScalingBlock),
    "NaFlex axial": _naflex(1, "axial", reg_tokens=1),
    "NaFlex mixed": _naflex(3, "mixed", class_token=True, reg_tokens=2, global_pool="token", fc_norm=False),
    "NaFlex dinov3": _naflex(0, "dinov3", rope_rotate_half=True),
    "NaFlex mrope": _naflex(1, "mrope", rope_mrope_section=(2, 3, 3), reg_tokens=1),
    "Qwen3": _rope("qwen3_vit_88m", sizes=_QWEN),
    "DeepSeek": _rope("deepseek_vit_412m", sizes=_SIZE, mlp_ratio=2.0),
    "Gemma 4": _rope("gemma4_vit_167m", sizes=_GEMMA),
}


def make_family(name: str, **kwargs: Any) -> nn.Module:
    """The tiny model of a family."""
    family = FAMILIES[name]
    return make_timm(family.architecture, **{**family.sizes, **family.arguments, **kwargs})


def family_images(number: int = 2) -> Tensor:
    """Images for all of them; 6 × 6 patches."""
    return make_images(number, 48)


def encoder_of(model: Any) -> Any:
    """What holds the blocks."""
    return getattr(model, "encoder", model)


class Hand:
    """A plain model made to merge by hooks, of which the library knows nothing.

    The weights A are asked of the mergers; the centroids are found from rows and columns, and the rotary tables of
    them by timm's formulas.
    """

    def __init__(self, plain: nn.Module, prefix: int, places: Mapping[int, nn.Module], grid: tuple[int, int] = GRID):
        self.model: Any = copy.deepcopy(plain)
        self.prefix, self.places, self.grid = prefix, places, grid
        self.encoder = encoder_of(self.model)
        self.weights: Tensor | None = None
        self.no_positions = False
        for number, block in enumerate(self.encoder.blocks, start=1):
            if number in places:
                block.register_forward_hook(lambda block, args, x, number=number: self._merge(x, number))
            if number > min(places):
                block.register_forward_pre_hook(
                    lambda block, args, kwargs, index=number - 1: self._turn(args, kwargs, index), with_kwargs=True
                )
                _drop_bias(block)
        if hasattr(self.encoder, "_pos_embed") and type(self.encoder).__name__.endswith("VitEncoder"):
            self.encoder.forward_features = self._encode

    def __call__(self, images: Any) -> Tensor:
        self.weights = None
        return self.model(images)

    def features(self, images: Tensor) -> Tensor:
        self.weights = None
        return self.model.forward_features(images)

    def _merge(self, x: Tensor, number: int) -> Tensor:
        merged, weights = self.places[number](x[:, self.prefix :], return_weights=True)
        self.weights = weights if self.weights is None else weights @ self.weights
        return torch.cat((x[:, : self.prefix], merged), dim=1)

    def _turn(self, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> tuple[Any, dict[str, Any]]:
        if hasattr(self.encoder, "rotary_emb"):
            cos, sin = gemma_table(self.encoder.rotary_emb, self.grid, self.weights)
            if self.no_positions:
                cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
            return (args[0], cos, sin), kwargs
        if kwargs.get("rope") is not None:
            table = centroid_table(self.encoder.rope, self.grid, self.weights, index)
            kwargs["rope"] = None if self.no_positions else table
        for name in ("shared_rel_pos", "shared_rel_pos_bias", "attn_mask"):
            if name in kwargs:
                kwargs[name] = None
        return args, kwargs

    def _encode(self, images: Tensor) -> Tensor:
        """Qwen3's and DeepSeek's features, without the reshape to the grid."""
        x, rope = self.encoder._pos_embed(self.encoder.patch_embed(images))
        for block in self.encoder.blocks:
            x = block(x, rope=rope)
        return getattr(self.encoder, "norm", nn.Identity())(x)[:, None]


def _drop_bias(block: Any) -> None:
    for name in ("relative_position_bias_table", "rel_pos"):
        if getattr(getattr(block, "attn", None), name, None) is not None:
            setattr(block.attn, name, None)


def centres(grid: tuple[int, int], weights: Tensor) -> Tensor:
    """Σ A (row, column), (B, M, 2) in float64."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return weights.double() @ torch.stack((rows, columns), dim=-1).flatten(0, 1).double()


def centroid_table(rope: Any, grid: tuple[int, int], weights: Tensor, index: int) -> Tensor:
    """timm's formula for the sines and cosines of places, at the centroids: (B, 1 or heads, M, 2d)."""
    places = centres(grid, weights)
    half = getattr(rope, "rotate_half", False)
    if isinstance(rope, sincos.RotaryEmbeddingMixed):
        first, second = (places.flip(-1) if rope.grid_indexing == "xy" else places)[:, None].unbind(-1)
        frequencies = rope.freqs.double()[:, index, None]  # (2, 1, heads, d / 2)
        angles = first[..., None] * frequencies[0][..., None, :] + second[..., None] * frequencies[1][..., None, :]
    elif isinstance(rope, sincos.RotaryEmbeddingMRope):
        half = True
        places = torch.cat((torch.zeros_like(places[..., :1]), places), dim=-1)
        angles = (places[..., rope.axis] * rope.inv_freq.double())[:, None]
    elif isinstance(rope, sincos.RotaryEmbeddingDinoV3):
        places = (places + 0.5 + rope.grid_offset) / torch.tensor(grid) * 2 - 1
        places = places.flip(-1) if rope.grid_indexing == "xy" else places
        angles = (2 * math.pi * places[..., None] / rope.periods.double()).flatten(-2)[:, None]
    else:
        places = places + rope.grid_offset
        if rope.ref_feat_shape is not None:
            places = places / torch.tensor(grid) * torch.tensor(rope.ref_feat_shape)
        places = places.flip(-1) if rope.grid_indexing == "xy" else places
        angles = (places[..., None] * rope.bands.double()).flatten(-2)[:, None]
    angles = torch.cat((angles, angles), dim=-1) if half else angles.repeat_interleave(2, -1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


def gemma_table(rope: Any, grid: tuple[int, int], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Gemma 4's formula at the centroids: cosines and sines, (B, M, d) each."""
    angles = centres(grid, weights).flip(-1)[..., None] * rope.inv_freq.double()  # x, then y
    angles = torch.cat((angles, angles), dim=-1).flatten(-2)
    return angles.cos().float(), angles.sin().float()
