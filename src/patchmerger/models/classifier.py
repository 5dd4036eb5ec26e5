"""A classifier of any library: found by its name, and run alike, for its scores and pooled features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.data.batches import normalized_batches
from patchmerger.data.images import ImageSet
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hosts import find_host
from patchmerger.hosts.example_inputs import example_input
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.finding import FoundModel, find_model, known_preprocessing


class Classifier(nn.Module):
    """A model as a function from images to scores, whatever its library calls its inputs and outputs.

    ``net`` is a supported model of timm, transformers or torchvision, or one of one's own that gives (B, C); not
    copied. It is called with ``arguments`` beside the images. Where not ``gives_scores``, its C outputs are pooled
    features.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        example = example_input(net)
        if example.text:
            raise ValueError(
                f"model ({host_class(net).__name__}) compares images with texts and gives no scores of classes: take "
                "the class of its library that classifies images, such as CLIPForImageClassification, or train its "
                "merger in a loop of your own"
            )
        if example.others or example.images.ndim != 4:
            raise ValueError(
                f"model ({host_class(net).__name__}) takes something else than images (B, 3, S, S): only classifiers "
                "of such images are run here"
            )
        self._keyword = example.name
        self.arguments: dict[str, Any] = {}
        self.channels, *self.image_size = example.images.shape[1:]
        self.gives_scores = 0 not in (getattr(net, "num_classes", None), getattr(net, "num_labels", None))
        self.num_outputs: int = self._count(example.images)
        self._head = [_find_head(net, self.num_outputs)]  # in a list, so that it is not registered twice

    @property
    def head(self) -> nn.Linear | None:
        """The last layer, which makes scores of pooled features (B, D); ``None`` where none is known."""
        return self._head[0]

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, C) of normalised images (B, 3, S, S)."""
        return _scores(self._run(images), self.net)

    def _run(self, images: Tensor) -> Any:
        if self._keyword is None:
            return self.net(images, **self.arguments)
        return self.net(**{self._keyword: images}, **self.arguments)

    def with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, C), and the pooled features (B, D) that the last layer makes them of: one pass for both."""
        if self.head is None:
            scores = self(images)
            return scores, scores
        seen: list[Tensor] = []
        with self.head.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
            scores = self(images)
        return scores, seen[0].flatten(1)

    def _count(self, images: Tensor) -> int:
        with torch.no_grad(), eval_mode(self.net):
            whole = self._run(images)
            self.gives_scores = self.gives_scores and (isinstance(whole, Tensor) or hasattr(whole, "logits"))
            output = _scores(whole, self.net)
        if output.ndim != 2:
            raise ValueError(f"model ({host_class(self.net).__name__}) gives {tuple(output.shape)}, and not (B, C)")
        return int(output.shape[1])


@dataclass(frozen=True)
class FoundClassifier(FoundModel):
    """A classifier of RGB images, as a function from images to scores, and what is known of it."""

    preprocessing: Preprocessing
    classifier: Classifier = field(kw_only=True, repr=False)

    @property
    def image_size(self) -> int:
        """Height and width of its images, in pixels."""
        return self.classifier.image_size[0]

    def prepared(self, images: ImageSet, count: int, *, seed: int) -> Tensor:
        """Some of the images, drawn at random, as in evaluation: (n, 3, S, S)."""
        return torch.cat(list(self.batches(images.drawn(count, seed))))

    def batches(
        self, images: ImageSet, *, batch_size: int = 128, workers: int | None = None, like: Tensor | None = None
    ) -> Iterator[Tensor]:
        """All images in order, as in evaluation, on the device and of the dtype of ``like``: (B, 3, S, S)."""
        return normalized_batches(
            images, self.preprocessing, self.image_size, batch_size=batch_size, workers=workers, like=like
        )


def find_classifier(
    model: str | Path | nn.Module | FoundModel,
    *,
    preprocessing: Preprocessing | None = None,
    crop_pct: float | None = None,
    features: bool = False,
) -> FoundClassifier:
    """Find a trained classifier of RGB images, and how its images are prepared.

    Args:
        model: As in :func:`~patchmerger.models.find_model`.
        preprocessing: How images are prepared, in place of what is known of the model.
        crop_pct: Share of the resized image that is kept, likewise.
        features: Take a model that gives features and no scores too.

    Raises:
        ValueError: A model that is not known, has no weights, is no classifier of square RGB images, or does not say
            how its images are prepared.
        FileNotFoundError: There is no such folder or file.
    """
    found = find_model(model)
    known = known_preprocessing(preprocessing or found.preprocessing, found.name)
    classifier = Classifier(found.model)
    height, width = classifier.image_size
    check_channels(classifier.channels, found.name)
    if height != width:
        raise ValueError(f"model ({found.name}) takes images of {height} × {width} pixels; square ones are needed")
    if not (classifier.gives_scores or features):
        raise ValueError(
            f"model ({found.name}) gives {classifier.num_outputs} features and no scores of classes: train a "
            "classifier on them first"
        )
    if not features:
        refuse_one_output(classifier.num_outputs, found.name, multi_label=found.multi_label)
    if len(known.mean) != 3:
        raise ValueError(f"mean ({known.mean}) and std ({known.std}) must be three numbers each")
    known = replace(known, crop_pct=crop_pct or known.crop_pct)
    processor = found.image_processor if known == found.preprocessing else None
    return FoundClassifier(
        found.name, found.model, known, found.class_names, processor, found.multi_label, classifier=classifier
    )


def refuse_one_output(outputs: int, model: str, *, multi_label: bool) -> None:
    """Refuse the softmax over a single score, which is 1 whatever the image."""
    if outputs == 1 and not multi_label:
        raise ValueError(
            f"model ({model}) gives one score an image, and a softmax over one is always 1: where it is a yes or no, "
            "patchmerger.save(…, multi_label=True) says so, or predict's multi_label; a regression needs your own loop"
        )


def check_channels(channels: int, model: str) -> None:
    """Refuse a model of other images than RGB."""
    if channels != 3:
        raise ValueError(
            f"model ({model}) takes images of {channels} channels; the images here have 3 (RGB), as "
            "models that are made with in_chans=3 take them"
        )


def _scores(output: Any, net: nn.Module) -> Tensor:
    if isinstance(output, Tensor):
        return output
    found = getattr(output, "logits", None)
    if found is None:
        found = getattr(output, "pooler_output", None)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"model ({host_class(net).__name__}) gives {type(output).__name__} without logits: take the class of its "
            "library that classifies images, such as ViTForImageClassification"
        )
    return found


def _find_head(net: Any, num_outputs: int) -> nn.Linear | None:
    """The last linear layer outside the blocks that gives the scores; the first one where two give their mean."""
    if not hasattr(net, "get_classifier"):
        return _linear(net, num_outputs)
    known = net.get_classifier()
    known = known[0] if isinstance(known, tuple) else known
    if isinstance(known, nn.Linear | nn.Identity):
        return known if isinstance(known, nn.Linear) else None
    return _linear(net, num_outputs)


def _linear(net: nn.Module, num_outputs: int) -> nn.Linear | None:
    inside = {id(module) for block in find_host(net).blocks for module in block.modules()}
    names = ("LayerNorm", "pooler", "proj")
    found = [
        module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) not in inside
        and module.out_features == num_outputs
        and not any(part in name.rsplit(".", 2)[-2:] for part in names)
    ]
    return found[0] if found else None


def divergence(scores: Tensor, target: Tensor, *, temperature: float = 1.0, multi_label: bool = False) -> Tensor:
    """How far scores are from those of another model: mean over the images of ``T² KL(softmax(t/T) ‖ softmax(s/T))``.

    Scores s and their target t are (B, C); with a higher temperature T the classes that both think unlikely count for
    more. With several labels an image a yes or no for each class is compared instead, and summed over the classes.

    Returns:
        A scalar, 0 where both agree, in nats.

    Source: Hinton et al., *Distilling the Knowledge in a Neural Network*, arXiv 1503.02531.
    """
    scores, target = scores.float() / temperature, target.float() / temperature
    if multi_label:
        wanted = target.sigmoid()
        per_class = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
        least = F.binary_cross_entropy_with_logits(target, wanted, reduction="none")
        return (per_class - least).sum(dim=1).mean() * temperature**2
    log_p, log_q = scores.log_softmax(dim=1), target.log_softmax(dim=1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature**2


def feature_error(features: Tensor, target: Tensor) -> Tensor:
    """Squared error of features (B, D), of the variance of the target over images: 1 is as bad as their mean."""
    features, target = features.float(), target.float()
    spread = (target - target.mean(dim=0)).square().sum(dim=1).mean()
    return (features - target).square().sum(dim=1).mean() / spread.clamp(min=1e-12)
