"""Frozen features of images: one pass of a model over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from patchmerger.data import ImageSet, Preprocessing
from patchmerger.data.batches import normalized_batches
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier
from patchmerger.runs.progress import progress_bar

FeatureFunction: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""From a model and normalised images (B, 3, S, S) to features (B, D)."""


def pre_logits(model: nn.Module, images: Tensor) -> Tensor:
    """What the last layer of a model classifies: its tokens, pooled and normalised.

    Images are normalised, (B, 3, S, S); the model is one of timm, or any as a
    :class:`~patchmerger.models.classifier.Classifier`, else ``TypeError`` is raised. Returns features, (B, D).
    """
    if isinstance(model, Classifier):
        return model.with_features(images)[1]
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        timm_model = cast(Any, model)
        return cast(Tensor, timm_model.forward_head(timm_model.forward_features(images), pre_logits=True))
    raise TypeError(
        f"model ({type(model).__name__}) has no forward_features and forward_head, as timm's models have: give "
        "`features`, a function of the model and the images that returns (B, D)"
    )


def extract_features(
    model: nn.Module,
    sets: Sequence[ImageSet],
    *,
    image_size: int,
    preprocessing: Preprocessing,
    features: FeatureFunction = pre_logits,
    batch_size: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> list[Tensor]:
    """Features of every image, on the device that the model is on, in eval mode; the model is left as it was.

    Args:
        model: The model.
        sets: Images, such as those of several splits; they share one progress bar.
        image_size: Height and width S that images are fitted to.
        preprocessing: How they are resized, cropped and normalised.
        features: What gives the features; by default :func:`pre_logits`.
        batch_size: Images in a batch.
        workers: Processes that load images; chosen by the number of cores by default.
        progress: Show a progress bar, on a terminal only.

    Returns:
        For each set the features, float32 (n, D), on the CPU, in the order of the images.

    Raises:
        ValueError: ``features`` gives anything but one row of numbers for each image.
    """
    like = next(model.parameters())
    extracted: list[Tensor] = []
    total = sum(len(images) for images in sets)
    with torch.inference_mode(), eval_mode(model), progress_bar("features", total, shown=progress) as bar:
        for images in sets:
            parts = []
            for batch in normalized_batches(
                images, preprocessing, image_size, batch_size=batch_size, workers=workers, like=like
            ):
                part = features(model, batch)
                if part.ndim != 2 or len(part) != len(batch):
                    raise ValueError(f"features gives {tuple(part.shape)} for {len(batch)} images, not (B, D)")
                parts.append(part.float().cpu())
                bar.advance(len(batch))
            extracted.append(torch.cat(parts))  # (n, D)
    return extracted
