"""How good a model is on held-out images, beside the plain model that it was made from."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from patchmerger.acceleration.kept_tokens import HELD_OUT_SHARE, KeptShape, KeptTokens, images_that_fit
from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.data.images import ImageSet
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier, FoundClassifier, divergence
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import over_images
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.training.task import score

_BINS = 15


def scores_of(
    classifier: Classifier, images: ImageSet, teacher: FoundClassifier, *, batch_size: int = 128,
    workers: int | None = None, progress: bool = True,
) -> Tensor:  # fmt: skip
    """Scores of all images, in order, by a classifier on the device to work on: float32 (n, C), on the CPU.

    Images are prepared as for the ``teacher``.
    """
    like, found = next(classifier.parameters()), []
    with eval_mode(classifier), torch.inference_mode(), progress_bar("evaluating", len(images), shown=progress) as bar:
        for batch in teacher.batches(images, batch_size=batch_size, workers=workers, like=like):
            found.append(classifier(batch).float().cpu())
            bar.advance(len(batch))
    return torch.cat(found)


def scored_within(
    seconds: float, classifier: Classifier, images: ImageSet, teacher: FoundClassifier, *, batch_size: int,
    workers: int | None, least: int = 1000,
) -> int:  # fmt: skip
    """How many images a model scores in so many seconds, measured on two batches; ``least`` are worth any time."""
    if len(images) <= least:
        return len(images)
    batch = images.subset(range(min(len(images), batch_size)))
    for _ in range(2):  # the first warms up
        begin = time.perf_counter()
        scores_of(classifier, batch, teacher, batch_size=batch_size, workers=workers, progress=False)
        taken = (time.perf_counter() - begin) / len(batch)
    return min(len(images), max(least, int(seconds / taken)))


class HeldOutScores:
    """Scores of the plain and of merged models on held-out images, for which the blocks before the merge run once.

    Their tokens after block ``after``, counted from 1, are kept in ``folder`` where a share of so many GiB has space.
    """

    def __init__(
        self,
        teacher: FoundClassifier,
        images: ImageSet,
        after: int,
        folder: Path,
        *,
        cache_gib: float,
        device: torch.device,
        batch_size: int,
        workers: int | None,
        progress: bool,
    ) -> None:
        self.teacher, self.images, self.after, self.folder = teacher, images, after, folder
        self.device, self.batch_size, self.workers, self.progress = device, batch_size, workers, progress
        self._plain = Classifier(copy.deepcopy(teacher.model).to(device))
        with torch.no_grad():
            front = RearHalf(self._plain, after).front(self._plain, next(self._batches(images.subset([0]))))
        (_, tokens, dim), classes, features = front.tokens.shape, front.scores.shape[1], front.features.shape[1]
        shape = KeptShape(tokens, dim, classes, features, "float32")
        fits = images_that_fit(shape, len(images), folder, cache_gib, share=HELD_OUT_SHARE)[0] == len(images)
        identity = {"teacher": teacher.fingerprint, "after": after, "images": len(images)}
        self.kept = KeptTokens(folder, shape, len(images), identity) if fits else None

    def of_plain(self) -> Tensor:
        """(n, C), float32 on the CPU."""
        if self.kept is None:
            return self._whole(self._plain)
        rear, left = RearHalf(self._plain, self.after), self.images.subset(range(self.kept.done, len(self.images)))
        with torch.no_grad(), progress_bar("evaluating", len(left), shown=self.progress) as bar:
            fronts = (rear.front(self._plain, batch) for batch in self._batches(left)) if len(left) else iter(())
            for images in self.kept.write((front.tokens, front.scores, front.features) for front in fronts):
                bar.advance(images)
        return self.kept.scores()

    def of_merged(self, model: nn.Module, *, same_front: bool) -> Tensor:
        """(n, C), float32 on the CPU; ``same_front`` says that the blocks before the merge are the plain model's."""
        classifier = Classifier(copy.deepcopy(model).to(self.device))
        kept = self.kept
        if kept is None or kept.done < len(self.images) or not same_front:
            return self._whole(classifier)
        rear, found = RearHalf(classifier, self.after), []
        try:
            rear.check(classifier, next(self._batches(self.images.subset([0, len(self.images) - 1]))))
        except ValueError:  # its later blocks look at more than tokens
            return self._whole(classifier)
        with eval_mode(classifier), torch.no_grad():
            for start in range(0, len(self.images), self.batch_size):
                tokens, _, _ = kept.read(range(start, min(start + self.batch_size, len(self.images))))
                found.append(rear.run(classifier, tokens.to(next(classifier.parameters())))[0].float().cpu())
        return torch.cat(found)

    def remove(self) -> None:
        """Delete what was kept."""
        if self.kept is not None:
            self.kept.remove()

    def _whole(self, classifier: Classifier) -> Tensor:
        return scores_of(
            classifier, self.images, self.teacher, batch_size=self.batch_size, workers=self.workers,
            progress=self.progress,
        )  # fmt: skip

    def _batches(self, images: ImageSet) -> Iterator[Tensor]:
        like = next(self._plain.parameters())
        return self.teacher.batches(images, batch_size=self.batch_size, workers=self.workers, like=like)


class Evaluation:
    """How good the plain and merged models are on held-out images; the scores of each are computed once, and kept.

    Attributes:
        metric: What ``accuracy`` is: "accuracy", "mAP" with several labels an image, "agreement" without labels.
        found: What :func:`compare_scores` says of each model, by name.
    """

    def __init__(self, held_out: HeldOutScores, folder: Path, *, labels: bool, multi_label: bool) -> None:
        self.held_out, self.folder, self.multi_label = held_out, folder, multi_label
        self.targets = held_out.images.targets if labels else None
        self.metric = "agreement" if self.targets is None else "mAP" if self.targets.ndim == 2 else "accuracy"
        self.found: dict[str, dict[str, Any]] = {}
        self._compare("plain", held_out.of_plain)

    @property
    def at_chance(self) -> bool:
        """Whether the plain model predicts labels no better than by chance."""
        return self.targets is not None and at_chance(self._scores("plain"), self.targets)

    def add(self, name: str, model: nn.Module, *, same_front: bool) -> str:
        """Evaluate a merged model, as :meth:`HeldOutScores.of_merged`; returns in words how good it is."""
        found = self._compare(name, lambda: self.held_out.of_merged(model, same_front=same_front))
        agreement = f"agrees with the plain model on {100 * found['agreement']:.1f}%"
        if found["accuracy"] is None:
            return agreement
        lost = 100 * (found["accuracy"] - self.found["plain"]["accuracy"])
        return f"{self.metric} {100 * found['accuracy']:.2f}% ({lost:+.2f} points), {agreement}"

    def _compare(self, name: str, compute: Callable[[], Tensor]) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            write_tensors(path, {"scores": compute()})
        ours, plain = self._scores(name), self._scores("plain")
        self.found[name] = compare_scores(ours, plain, self.targets, multi_label=self.multi_label)
        return self.found[name]

    def _scores(self, name: str) -> Tensor:
        return read_tensors(self._path(name))["scores"]

    def _path(self, name: str) -> Path:
        return self.folder / f"scores-{name}.safetensors"


def compare_scores(
    scores: Tensor, teacher: Tensor, targets: Tensor | None, *, multi_label: bool = False
) -> dict[str, Any]:
    """Compare the scores (n, C) of a model with those of the plain one, image by image.

    Targets are labels, (n,), or (n, C) zeros and ones; ``None`` without labels, of which ``multi_label`` then says
    whether an image may have several.

    Returns:
        ``accuracy`` (mAP with several labels an image) and ``ece``, the expected calibration error over 15 bins, both
        ``None`` without labels; ``agreement``, the share of images (or of decisions, with several labels) for which
        both predict the same; ``divergence`` in nats; ``difference``, the paired difference in accuracy with its
        interval.
    """
    several = multi_label if targets is None else targets.ndim == 2
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
    """Whether labels are predicted no better than by classes drawn as often as the model names them.

    With the share p_c of images of class c and the share q_c of predictions of c, such draws are right on
    p_e = Σ p_c q_c of the images, with the standard error √((p_e + p_e² − Σ p_c q_c (p_c + q_c)) / n) (Fleiss, Cohen
    and Everitt, 1969); an accuracy within three of them above p_e is chance. Naming one class always is, however
    frequent that class. Where all images are of one class it cannot be told, and is not said. Of several labels an
    image: whether the mAP is hardly above the mean share of images that have a label.
    """
    if targets.ndim == 2:
        shares = targets.double().mean(dim=0)
        return score(scores, targets) <= 1.1 * float(shares[shares > 0].mean())
    if bool((targets == targets[0]).all()):
        return False
    drawn = _shares(targets, scores.shape[1]), _shares(scores.argmax(dim=1), scores.shape[1])
    both = drawn[0] * drawn[1]
    expected = float(both.sum())
    variance = expected + expected**2 - float((both * (drawn[0] + drawn[1])).sum())
    return score(scores, targets) <= expected + 3 * math.sqrt(max(variance, 0.0) / len(targets)) + 1e-6


def _shares(classes: Tensor, count: int) -> Tensor:
    """How often each of ``count`` classes is among (n,): (count,), float64, that sum up to 1."""
    return classes.bincount(minlength=count).double() / len(classes)


def chance_warning(teacher: FoundClassifier, accuracy: float, source: str) -> str:
    """What to say of a teacher that knows nothing of the data."""
    names = (
        "" if teacher.class_names is None else f"; the model's first classes are {', '.join(teacher.class_names[:3])}"
    )
    mean, std = list(teacher.preprocessing.mean), list(teacher.preprocessing.std)
    return (
        f"model ({teacher.name}) is right on {100 * accuracy:.1f}% of the held-out images of {source}, no more than by "
        f"chance, from drawing the {teacher.classifier.num_outputs} classes as often as it names each. The usual "
        f"causes are a wrong normalisation (mean {mean}, std {std} are taken; preprocessing changes them) and classes "
        f"in another order than the model's{names}"
    )
