"""Predict classes or features: a model that is loaded once, and images that stream through it in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchmerger.data.batches import EvaluationOrder, Loader
from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import EvalTransform, normalize
from patchmerger.exports.runtimes import is_exported
from patchmerger.models.classifier import refuse_one_output
from patchmerger.prediction.exported import ExportedScorer
from patchmerger.prediction.outcomes import BadImage, PredictedClass, Prediction, Predictions
from patchmerger.prediction.pictures import ImagesLike, Pictures, find_pictures
from patchmerger.prediction.scorer import ModelScorer, Scorer
from patchmerger.runs.checks import check_count
from patchmerger.runs.environment import default_workers
from patchmerger.runs.progress import progress_bar


class Predictor:
    """A model that is loaded once, for any number of predictions.

    Args:
        model: As in :func:`~patchmerger.models.find_model`: a folder that was saved, that of a run, an architecture of
            timm with weights, a name on the Hub, or a model in memory; or a file of ``patchmerger export``, of which
            ``.pt2`` can run any code when it is opened: open those alone that come from somebody you trust.
        preprocessing: How images are prepared, in place of what is known of the model.
        class_names: One name a class, likewise. A model of 1,000 classes that names none has ImageNet's.
        multi_label: Whether an image may have several classes: then a probability is the sigmoid of a score, else the
            softmax over all. By default as the folder or file of the model says, or its config (transformers).
        device: Such as "cpu" or "cuda"; by default where a model in memory is, and else the accelerator where there is
            one.

    Attributes:
        scorer: The model, and what is known of it.

    Raises:
        ValueError: No such model; one whose preprocessing is not known or that takes no RGB images, or has another
            number of classes than ``class_names``.
        FileNotFoundError: There is no such folder or file.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        multi_label: bool | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        in_torch = isinstance(model, nn.Module) or not is_exported(model)
        make: Any = ModelScorer if in_torch else ExportedScorer
        self.scorer: Scorer = make(model, preprocessing=preprocessing, class_names=class_names, device=device)
        self.multi_label = self.scorer.multi_label if multi_label is None else multi_label
        if self.multi_label and self.scorer.only_softmax:
            raise ValueError(f"multi_label (true): {self.scorer.only_softmax}; take a file that gives logits")

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class.

        Raises:
            ValueError: The model has no classes.
        """
        if not self.scorer.class_names:
            raise ValueError(f"model ({self.scorer.name}) has no classes: ask for its features (features=True)")
        return self.scorer.class_names

    def __call__(
        self, images: ImagesLike, *, top: int = 5, features: bool = False, batch_size: int = 32
    ) -> Predictions:
        """Predict for some images.

        Args:
            images: As in :func:`find_pictures`.
            top: Classes an image, best first; all of them where there are fewer.
            features: Give the features that the last layer classifies, in place of classes.
            batch_size: Images in a batch.

        Raises:
            ValueError: The model has no classes, or images of floats have another size than it takes.
            FileNotFoundError: A path leads nowhere.
        """
        outcomes = self.stream(find_pictures(images), top=top, features=features, batch_size=batch_size, workers=0)
        return Predictions.of(outcomes, () if features else self.class_names)

    def stream(
        self,
        pictures: Pictures,
        *,
        top: int = 5,
        features: bool = False,
        batch_size: int = 32,
        workers: int | None = None,
        progress: bool = False,
    ) -> Iterator[Prediction | BadImage]:
        """Predict for any number of images, of which no more than some batches are in memory.

        Args:
            pictures: What :func:`find_pictures` found.
            top: Classes an image, best first.
            features: Give features in place of classes.
            batch_size: Images in a batch.
            workers: Processes that read images; by default none on two cores, else one less than there are.
            progress: Show a progress bar, on a terminal.

        Yields:
            For each image in order its prediction, or why it could not be read.
        """
        check_count("top", top)
        check_count("batch_size", batch_size)
        if features and self.scorer.only_scores:
            raise ValueError(f"features (true): {self.scorer.only_scores}")
        names = () if features else self.class_names
        refuse_one_output(len(names), self.scorer.name, multi_label=self.multi_label)
        order = EvaluationOrder(len(pictures), batch_size)
        if workers is None:
            workers = min(default_workers(), len(order))
        read = _ReadImages(pictures, EvalTransform(self.scorer.image_size, self.scorer.preprocessing))
        with progress_bar("images", len(pictures), shown=progress) as bar:
            for indices, batch in zip(order, Loader(read, order, workers=workers), strict=True):
                yield from self._outcomes([pictures.names[index] for index in indices], batch, names, top)
                bar.advance(len(indices))

    def _outcomes(
        self, images: list[str], batch: list[Tensor | str], names: tuple[str, ...], top: int
    ) -> Iterator[Prediction | BadImage]:
        """One outcome an image; without ``names`` features."""
        good = [image for image in batch if isinstance(image, Tensor)]
        rows = iter(self._run(good, names, top) if good else [])
        for image, read in zip(images, batch, strict=True):
            if isinstance(read, Tensor):
                classes, features = next(rows)
                yield Prediction(image, classes, features)
            else:
                yield BadImage(image, read)

    def _run(
        self, images: list[Tensor], names: tuple[str, ...], top: int
    ) -> list[tuple[tuple[PredictedClass, ...], Tensor | None]]:
        pixels = self._stack(images)  # (B, 3, S, S)
        if not names:
            features = self.scorer.features(pixels)  # (B, D)
            self._refuse_if_any("features", ~features.isfinite())
            return [((), row) for row in features.cpu()]
        scores = self.scorer.scores(pixels)  # (B, C)
        probabilities = scores.sigmoid() if self.multi_label else scores.softmax(dim=1)
        self._refuse_if_any("scores", probabilities.isnan() | (scores == float("inf")))  # −∞ leaves a class out
        best = probabilities.topk(min(top, len(names)), dim=1)
        return [
            (tuple(PredictedClass(names[i], i, p) for i, p in zip(indices, values, strict=True)), None)
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _refuse_if_any(self, what: str, wrong: Tensor) -> None:
        if bool(wrong.any()):
            raise ValueError(
                f"model ({self.scorer.name}) gives {what} that are no numbers (NaN) or infinite: its weights are "
                "damaged, or too coarse a number format made them so"
            )

    def _stack(self, images: list[Tensor]) -> Tensor:
        preprocessing, device = self.scorer.preprocessing, self.scorer.device
        if any(image.is_floating_point() for image in images):
            return torch.stack([normalize(image[None].to(device), preprocessing)[0].float() for image in images])
        return normalize(torch.stack(images).to(device), preprocessing)


def predict(
    model: str | Path | nn.Module | Predictor,
    images: ImagesLike,
    *,
    top: int = 5,
    features: bool = False,
    shard: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Predictions:
    """Predict the classes of images, or give their features.

    Args:
        model: As in :class:`Predictor`, which also takes a preprocessing and class names for models that know none; or
            such a predictor, which is loaded already.
        images: Paths of files or folders (with the folders in them), encoded bytes, pictures of PIL, or tensors
            (3, H, W) or (B, 3, H, W): uint8 of any size, or floats, which are taken as they are. One or several.
        top: Classes an image, best first; all of them where there are fewer.
        features: Give the features (D,) that the last layer classifies, in place of classes.
        shard: A share of the images, such as "2/8" for the second of eight.
        batch_size: Images in a batch.
        device: As in :class:`Predictor`; one that is loaded already stays where it is.
        workers: Processes that read images; chosen by the number of cores by default.
        progress: Show a progress bar, on a terminal.

    Returns:
        One prediction for each image that could be read, in order, and the images that could not.

    Raises:
        ValueError: No such model or one without classes; a folder without images; a number out of its range.
        FileNotFoundError: There is no such model, image or folder.
        TypeError: Something that is no image.
    """
    check_count("top", top)
    check_count("batch_size", batch_size)
    if isinstance(model, Predictor) and device is not None:
        raise ValueError(f"device ({str(device)!r}) is for a model that is not loaded yet: give it to the Predictor")
    pictures = find_pictures(images, shard=shard)
    predictor = model if isinstance(model, Predictor) else Predictor(model, device=device)
    outcomes = predictor.stream(
        pictures, top=top, features=features, batch_size=batch_size, workers=workers, progress=progress
    )
    return Predictions.of(outcomes, () if features else predictor.class_names)


class _ReadImages(Dataset[list[Tensor | str]]):
    """Images fitted to one size: uint8 (3, S, S), or why one could not be read."""

    def __init__(self, pictures: Pictures, transform: EvalTransform) -> None:
        self.pictures = pictures
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor | str]:
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Tensor | str:
        picture = self.pictures.pictures[index]
        try:
            return self.transform(picture if isinstance(picture, Tensor) else decode(picture))
        except BadImageError as error:
            return str(error)
        except OSError as error:  # a file that may not be read
            return error.strerror or str(error)
