"""Images as a model takes them, in batches: for calibration and evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchmerger.data.batches import EvaluationImages, EvaluationOrder, Loader
from patchmerger.data.images import ImageSet
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import EvalTransform, normalize
from patchmerger.runs.environment import default_workers


def normalized_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    image_size: int,
    *,
    batch_size: int = 128,
    workers: int | None = None,
) -> Iterator[Tensor]:
    """All images in order, prepared as in evaluation: batches of floats (B, 3, S, S).

    Args:
        images: The images.
        preprocessing: How they are prepared.
        image_size: Height and width S that they are fitted to.
        batch_size: Images in a batch, B.
        workers: Processes that load images; by default as many as there are cores for.
    """
    dataset = EvaluationImages(images, EvalTransform(image_size, preprocessing))
    order = EvaluationOrder(len(images), batch_size)
    for pixels, _ in Loader(dataset, order, workers=default_workers() if workers is None else workers):
        yield normalize(pixels, preprocessing)


def some_of(images: ImageSet, count: int, seed: int) -> ImageSet:
    """At most ``count`` images, drawn at random."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images.subset(order.tolist())


def calibration_batch(
    images: ImageSet, preprocessing: Preprocessing, *, image_size: int, count: int, seed: int
) -> Tensor:
    """Some images, drawn at random, as in evaluation: (n, 3, S, S)."""
    return torch.cat(list(normalized_batches(some_of(images, count, seed), preprocessing, image_size)))
