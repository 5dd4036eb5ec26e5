"""The models that are measured side by side: plain, merged, and where asked for vit-pytorch's."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchmerger.costs.counting import on_meta
from patchmerger.costs.placements import needed_positions
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts import find_host
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.options import Positions
from patchmerger.mechanism.placed_tokens import num_placed_tokens
from patchmerger.models.build import find_untrained
from patchmerger.placing.in_model import plain_model
from patchmerger.runs.random_state import seeded
from patchmerger.speed.settings import BenchSettings


@dataclass(frozen=True)
class Candidates:
    """Models to measure side by side, by name: ``"plain"``, ``"merged"``, and ``"vit-pytorch"`` where asked for.

    ``placed`` are the tokens that the merged model places in an image; ``None`` where they are the patches of a grid.
    ``preprocessing`` is how images are prepared for them, where that is known.
    """

    models: dict[str, nn.Module]
    num_tokens: tuple[int, ...]
    after: tuple[int, ...]
    positions: Positions | None
    placed: int | None
    preprocessing: Preprocessing | None


def build_candidates(name: str, settings: BenchSettings = BenchSettings(), *, seed: int | None = None) -> Candidates:
    """Build the models to measure for one name, as :func:`patchmerger.models.find_model` knows them.

    A saved model that merges or places its tokens is measured as it is, against the plain one. ``seed`` is that of the
    random weights; ``None`` builds timm models on the meta device, without weights.

    Raises:
        ValueError: An unknown name, or arguments that the model cannot take.
    """
    architecture = settings.architecture if name.endswith(".safetensors") else None
    known = find_untrained(name, architecture=architecture, image_size=settings.image_size, seed=seed)
    found = known.model
    positions: Positions | None
    saved, placed = mergers(found), num_placed_tokens(found)
    if saved and settings.reducer != "patchmerger":
        raise ValueError(f"reducer ({settings.reducer!r}) asks for a merge, but {name} has one: name a plain model")
    if saved or placed is not None:
        plain, merged, positions = plain_model(copy.deepcopy(found)), found, saved[0].positions if saved else None
    else:
        plain, positions = found, needed_positions(on_meta(found))
        with seeded(seed or 0):
            merged = insert(
                copy.deepcopy(found), settings.num_tokens, settings.after, positions=positions, reducer=settings.reducer
            )
    inserted = mergers(merged)
    models = {"plain": plain, "merged": merged}
    if (against := settings.against) is not None:
        if len(inserted) != 1:
            raise ValueError(f"against ({against!r}) has one merger, and not {len(inserted)}")
        with torch.device("meta" if seed is None else "cpu"), seeded(seed or 0):
            models[against] = _vit_pytorch(plain, inserted[0].after, inserted[0].num_tokens)
    tokens, after = tuple(m.num_tokens for m in inserted), tuple(m.after for m in inserted)
    return Candidates(models, tokens, after, positions, placed, known.preprocessing)


def _vit_pytorch(plain: nn.Module, after: int, num_tokens: int) -> nn.Module:
    """vit-pytorch's ViT with a merger, of the shape of a plain Vision Transformer of timm."""
    if not isinstance(plain, VisionTransformer):
        raise ValueError(f"against ('vit-pytorch') has no counterpart of {type(plain).__name__}: leave it out")
    try:
        from vit_pytorch.vit_with_patch_merger import ViT  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ValueError("against ('vit-pytorch') is not installed: pip install vit-pytorch") from error
    host, block = find_host(plain), plain.blocks[0]
    attention: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    if not all(hasattr(part, name) for part, name in ((attention, "num_heads"), (mlp, "fc1"))):
        raise ValueError(f"against ('vit-pytorch') has no counterpart of {type(block).__name__}: leave it out")
    channels = getattr(plain.patch_embed.proj, "in_channels", 3)
    model: nn.Module = ViT(
        image_size=plain.patch_embed.img_size,
        patch_size=plain.patch_embed.patch_size,
        num_classes=plain.num_classes,
        dim=host.dim,
        depth=len(host.blocks),
        heads=attention.num_heads,
        dim_head=host.dim // attention.num_heads,
        mlp_dim=mlp.fc1.out_features,
        patch_merge_layer=after,
        patch_merge_num_tokens=num_tokens,
        channels=channels,
    )
    model.image_size = tuple(plain.patch_embed.img_size)  # type: ignore[assignment]  # for `example_input`
    return model
