"""Exported files, run in ONNX Runtime, OpenVINO or torch, as a prediction needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports.runtimes import open_exported
from patchmerger.models.classifier import check_channels
from patchmerger.models.finding import known_preprocessing
from patchmerger.prediction.scorer import names_of


class ExportedScorer:
    """A file that ``patchmerger export`` wrote, which says what its images and classes are, if they are not given.

    Raises:
        ValueError: A damaged or foreign file; another device than the CPU; images that are not square or not RGB;
            another preprocessing than the one that is built in, or another number of classes than ``class_names``.
        FileNotFoundError: There is no such file.
        MissingExtraError: The library that runs it is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if device is not None and str(device).partition(":")[0] != "cpu":
            raise ValueError(f"device ({str(device)!r}) must be 'cpu' for the exported file {model}")
        self.name = str(model)
        self.exported = open_exported(model)
        info = self.exported.info
        check_channels(info.channels, self.name)
        height, width = info.image_size
        if height != width:
            raise ValueError(f"model ({model}) takes images of {height} × {width} pixels; square ones are needed")
        built_in = info.preprocessing if info.with_preprocessing else None
        if built_in and preprocessing and (preprocessing.mean, preprocessing.std) != (built_in.mean, built_in.std):
            raise ValueError(
                f"preprocessing (mean {preprocessing.mean}, std {preprocessing.std}) must have the mean "
                f"{built_in.mean} and std {built_in.std} that are built into {model}"
            )
        self.image_size = height
        self.preprocessing = known_preprocessing(preprocessing or info.preprocessing, self.name)
        self.only_scores: str | None = (
            None if info.gives_features else "this file gives scores alone: ask the model that it was made of"
        )
        self.class_names, self.remark = names_of(
            class_names, info.class_names, 0 if info.gives_features else info.num_classes, self.name
        )
        self.multi_label = info.multi_label
        self.only_softmax = f"the softmax is built into {model}" if info.with_preprocessing else None
        self.device = torch.device("cpu")

    def scores(self, images: Tensor) -> Tensor:
        """Scores (B, C) of normalised images (B, 3, S, S)."""
        return torch.from_numpy(self.exported.logits(images.float().contiguous().numpy()))

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D), of a file of a model without classes; of another never called: see ``only_scores``."""
        return self.scores(images)
