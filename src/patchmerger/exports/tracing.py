"""The model as one function of images, and the ``torch.export`` program of it that every format is made of."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports.image_sizes import open_sizes
from patchmerger.exports.metadata import INPUT
from patchmerger.exports.settings import ExportSettings
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.classifier import Classifier
from patchmerger.runs.silence import silent_libraries

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_OPERATION = re.compile(r"\b(?:aten|prims|torchvision|higher_order|quantized)(?:[.:]+\w+)+")


class ImageClassifier(nn.Module):
    """Images to logits in float32, or uint8 pixels to probabilities where a preprocessing is given, which is built in.

    The weights of ``net`` have the number format to compute in.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Classifier, preprocessing: Preprocessing | None) -> None:
        super().__init__()
        self.net = net
        self.with_preprocessing = preprocessing is not None
        if preprocessing is not None:
            for name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(getattr(preprocessing, name))[:, None, None], persistent=False)
        self._dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of normalised images (B, 3, H, W), or probabilities of uint8 (B, H, W, 3)."""
        if self.with_preprocessing:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std  # (B, 3, H, W)
        logits: Tensor = self.net(images.to(self._dtype)).float()
        return logits.softmax(dim=-1) if self.with_preprocessing else logits


def classifier_for(
    net: nn.Module,
    settings: ExportSettings,
    preprocessing: Preprocessing | None,
    dtype: torch.dtype,
    arguments: Mapping[str, Any] | None = None,
) -> ImageClassifier:
    """A copy of the model in eval mode on the CPU, as one function of images; ``arguments`` are given beside them."""
    clone = copy.deepcopy(net).to(device="cpu", dtype=dtype).eval().requires_grad_(False)
    classifier = Classifier(clone)
    classifier.arguments = dict(arguments or {})
    return ImageClassifier(classifier, preprocessing if settings.with_preprocessing else None).eval()


def trace(
    model: ImageClassifier, example: Tensor, settings: ExportSettings, size_step: int | None = None
) -> ExportedProgram:
    """The program of a model, for images of any size where their sides are multiples of ``size_step``.

    ``example`` are images as the model takes them: a batch of two, lest a size of one is taken to be fixed; for any
    size not square, and not of the model's own size, which would be taken to be fixed too.

    Raises:
        ValueError: An operation cannot be traced; it is named.
    """
    open_dims: dict[int, Any] = {0: Dim("batch")} if settings.dynamic_batch else {}
    if size_step is not None:
        first = 1 if settings.with_preprocessing else 2
        open_dims |= {first: size_step * Dim("rows"), first + 1: size_step * Dim("columns")}
    what = "traced by torch.export" + ("" if size_step is None else " for images of any size (dynamic_size)")
    open_model = nullcontext() if size_step is None else open_sizes(model)
    with refused_by_operation(model, what), torch.no_grad(), open_model:
        return torch.export.export(model, (example,), dynamic_shapes={INPUT: open_dims or None})


@contextmanager
def refused_by_operation(model: ImageClassifier, what: str) -> Iterator[None]:
    """Within it, an error of an exporter becomes a ``ValueError`` that names the operation; its chatter is dropped."""
    try:
        with silent_libraries():
            yield
    except (OSError, ModuleNotFoundError):
        raise
    except Exception as error:
        operation = _operation(error)
        named = f": its operation {operation} has no counterpart there" if operation else ""
        lines = (_COLOUR.sub("", line).strip() for line in str(error).splitlines())
        reason = next((line for line in lines if line), type(error).__name__)[:240]
        name = host_class(model.net.net).__name__
        raise ValueError(f"model ({name}) cannot be {what}{named} ({reason})") from error


def _operation(error: BaseException | None) -> str | None:
    """The operation that an error, or one that it came from, speaks of."""
    while error is not None:
        if found := _OPERATION.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
