"""How good a model is on held-out images, beside the plain model that it was made from."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from patchmerger.acceleration.image_batches import normalized_batches
from patchmerger.acceleration.teacher import Teacher
from patchmerger.data.images import ImageSet
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier, divergence
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import over_images
from patchmerger.training.task import score

_BINS = 15


def scores_of(
    classifier: Classifier, images: ImageSet, preprocessing: Preprocessing, *, image_size: int, batch_size: int = 128,
    workers: int | None = None, progress: bool = True,
) -> Tensor:  # fmt: skip
    """Scores of all images, in order: float32 (n, C), on the CPU.

    Args:
        classifier: The model, on the device to work on.
        images: The images.
        preprocessing: How they are prepared.
        image_size: Height and width that they are fitted to.
        batch_size: Images in a batch.
        workers: Processes that load images.
        progress: Show a bar, on a terminal.
    """
    like, found = next(classifier.parameters()), []
    with eval_mode(classifier), torch.inference_mode(), progress_bar("evaluating", len(images), shown=progress) as bar:
        for batch in normalized_batches(images, preprocessing, image_size, batch_size=batch_size, workers=workers):
            found.append(classifier(batch.to(like)).float().cpu())
            bar.advance(len(batch))
    return torch.cat(found)


def compare_scores(scores: Tensor, teacher: Tensor, targets: Tensor | None) -> dict[str, Any]:
    """Compare a model with the plain one, image by image.

    Args:
        scores: Of the model, (n, C).
        teacher: Of the plain model, (n, C).
        targets: Labels, (n,), or (n, C) zeros and ones; ``None`` without labels.

    Returns:
        ``accuracy`` (mAP with several labels an image) and ``ece``, the expected calibration error over 15 bins, both
        ``None`` without labels; ``agreement``, the share of images (or of decisions, with several labels) for which
        both predict the same; ``divergence`` in nats; ``difference``, the paired difference in accuracy with its
        interval.
    """
    several = targets is not None and targets.ndim == 2
    predicted, taught = ((s > 0) if several else s.argmax(dim=1) for s in (scores, teacher))
    result: dict[str, Any] = {
        "accuracy": None if targets is None else score(scores, targets),
        "agreement": float((predicted == taught).float().mean()),
        "divergence": float(divergence(scores, teacher, multi_label=several)),
        "ece": None,
        "difference": None,
        "images": len(scores),
    }
    if targets is not None and not several:
        error = multiclass_calibration_error(
            scores.softmax(dim=1), targets, num_classes=scores.shape[1], n_bins=_BINS, norm="l1"
        )
        result["ece"] = float(error)
        result["difference"] = to_json(over_images((predicted == targets).tolist(), (taught == targets).tolist()))
    return result


def at_chance(scores: Tensor, targets: Tensor) -> bool:
    """Whether labels are predicted no better than by chance: within three standard errors of always the same class."""
    if targets.ndim == 2:
        return score(scores, targets) <= 1.1 * float(targets.float().mean(dim=0).mean())
    chance = 1 / scores.shape[1]
    return score(scores, targets) <= chance + 3 * math.sqrt(chance * (1 - chance) / len(targets))


def chance_warning(teacher: Teacher, accuracy: float, source: str) -> str:
    """What to say of a teacher that knows nothing of the data."""
    names = (
        "" if teacher.class_names is None else f"; the model's first classes are {', '.join(teacher.class_names[:3])}"
    )
    mean, std = list(teacher.preprocessing.mean), list(teacher.preprocessing.std)
    return (
        f"model ({teacher.name}) is right on {100 * accuracy:.1f}% of the held-out images of {source}, no more than by "
        f"chance among {teacher.num_classes} classes. The usual causes are a wrong normalisation (mean {mean}, std "
        f"{std} are taken; mean= and std= change them) and classes in another order than the model's{names}"
    )
