"""A model by what a person calls it: a timm architecture, or the folder of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.hub import load
from patchmerger.models.build import build_model, check_model_name
from patchmerger.models.settings import ModelSettings


def named_model(name: str, image_size: int | tuple[int, int] | None = None, *, seed: int | None = None) -> nn.Module:
    """Build a timm model with random weights, or load a saved one.

    Args:
        name: A timm architecture, or a folder that ``patchmerger.save`` wrote; the folder, where there are both.
        image_size: Pixels, one number or (height, width), to build a timm model for; its own by default. A saved
            model stays as it was saved.
        seed: Of the random weights; ``None`` builds a timm model on the meta device, without weights.

    Raises:
        ValueError: timm does not know the name, or cannot build the model for that size.
    """
    if Path(name).is_dir():
        return load(name)
    check_model_name(name)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ValueError(f"image_size {size} must be at least one pixel high and wide")
    settings = ModelSettings(name, {} if size is None else {"img_size": size})
    if seed is None:
        with torch.device("meta"):
            model = build_model(settings, num_classes=1000)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build_model(settings, num_classes=1000)
    if size is not None:
        check_patches(model, size)
    return model


def check_patches(model: Any, size: tuple[int, int]) -> None:
    """Refuse images, (height, width) in pixels, of which timm would cut the edges off."""
    patch: tuple[int, int] = tuple(getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1)))
    if any(pixels % side for pixels, side in zip(size, patch, strict=True)):
        fitting = tuple(max(1, round(pixels / side)) * side for pixels, side in zip(size, patch, strict=True))
        raise ValueError(f"image_size {size} does not divide by the patch size {patch}: take {fitting}, say")
