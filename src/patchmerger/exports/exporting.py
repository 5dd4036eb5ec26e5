"""Export a model: find it, have its file written and compared with it, and only then put it in place."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchmerger import __version__
from patchmerger.data.loading import DataLike
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.exports.image_sizes import in_size, other_sizes, size_arguments, take_any_size
from patchmerger.exports.images import ExportImages, noise, prepare_images
from patchmerger.exports.metadata import ExportedMerger, ExportInfo
from patchmerger.exports.parity import BATCHES, Parity
from patchmerger.exports.runtimes import is_exported, open_exported
from patchmerger.exports.settings import ExportSettings
from patchmerger.exports.target import check_target, in_place, make_record, record_of
from patchmerger.exports.tracing import ImageClassifier, classifier_for
from patchmerger.exports.writing import write_file
from patchmerger.hosts.state import refuse_unsupported_state
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.blocks import is_merging
from patchmerger.models.classifier import Classifier
from patchmerger.models.finding import FoundModel, find_model, known_preprocessing
from patchmerger.placing.in_model import placing_of
from patchmerger.runs.files import write_json

_FEW = 4
"""Images that are compared in each further size, where a file takes any."""


@dataclass(frozen=True)
class ExportedFile:
    """What an export made.

    Attributes:
        path: The file, or the folder of OpenVINO's two.
        size: Bytes.
        info: What the file says of itself.
        parity: How near it is to the eager model.
        record: The JSON file with all of this, which ``patchmerger report`` shows.
        command: The command line that asked for it.
    """

    path: Path
    size: int
    info: ExportInfo
    parity: Parity
    record: Path
    command: str | None = None


def export(
    model: str | Path | nn.Module,
    out: str | os.PathLike[str],
    settings: ExportSettings = ExportSettings(),
    *,
    data: DataLike | None = None,
    architecture: str | None = None,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> ExportedFile:
    """Export a model, with its mergers or without, to a file of another runtime, and check that it is the same model.

    The file says itself what its images and classes are; :func:`patchmerger.exports.open_exported` runs any of them.
    It appears under its name only when it gives what the eager model in float32 gives, within the tolerance; with it
    comes its record, ``vit.onnx.json`` beside ``vit.onnx`` or ``export.json`` in an OpenVINO folder, which
    ``patchmerger report`` shows.

    Args:
        model: A folder that patchmerger or transformers saved, that of a run, a safetensors file, an architecture of
            timm with weights, a name on the Hugging Face Hub, or a model, which stays as it is.
        out: The file to write: .onnx, .pt2, or for OpenVINO a folder.
        settings: Format, number format, and how near the file must be.
        data: Images, labelled or not: a source, ``DataSettings``, or a dataset of one's own, as in
            :func:`patchmerger.data.load_images`. Both models are compared on held-out ones, int8 is calibrated on
            training ones. Without, both are compared on noise.
        architecture: For a safetensors file, timm's name of the architecture.
        preprocessing: How images are prepared, in place of what is known of the model.
        overwrite: Replace a file, or an OpenVINO folder, that is there.
        command: The command line that asked for it, kept in the record.

    Returns:
        Where the file is, what it says of itself, and how near it is.

    Raises:
        ParityError: The file gives other outputs than the eager model; none was left.
        FileExistsError: ``out`` is there and ``overwrite`` is false, or it is something else than an export.
        ValueError: An operation has no counterpart in the format, which is named; no classifier of images; settings
            that do not fit the model or the images.
        MissingExtraError: A library is not installed; the message names the extra.
        OSError: The disk is full; nothing is left under that name.
    """
    target = Path(out).expanduser()
    if not isinstance(model, nn.Module) and Path(model).expanduser().exists() and is_exported(model):
        raise ValueError(f"model ({model}) is an exported file already: give the model that it was made of")
    check_target(target, settings, overwrite=overwrite)
    found = find_model(model, architecture=architecture, image_size=settings.image_size)
    known = _preprocessing(found, preprocessing, data)
    _check(found, known, settings, data)
    sized = in_size(found.model, settings.image_size)
    net, arguments = sized.net, sized.arguments
    reference = classifier_for(net, settings, None, torch.float32, arguments)
    if settings.with_preprocessing:
        _check_softmax(found, reference.net)
    info = _describe(found, reference.net, sized.image_size, known, settings)
    open_net, step = take_any_size(net) if settings.dynamic_size else (net, None)
    info = replace(info, size_step=step)
    images = _images(info, known, settings, data)
    eager = _eager_logits(reference, images.parity.normalized)
    if step is not None:
        arguments = size_arguments(open_net)
        open_reference = classifier_for(open_net, settings, None, torch.float32, arguments)
        others = [_eager_logits(open_reference, each.normalized) for each in images.other_sizes]
        eager, net = np.concatenate([eager, *others]), open_net
    with in_place(target, settings, new=not overwrite) as path:
        info, parity = write_file(net, path, info, known, settings, images, eager, arguments)
        written = open_exported(path)
        size = written.size
        record = make_record(target, size, info, parity, settings, runtime=written.runtime, command=command)
        write_json(record_of(path, settings), record)
    return ExportedFile(target, size, info, parity, record_of(target, settings), command)


def _eager_logits(reference: ImageClassifier, images: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = torch.cat([reference(batch) for batch in torch.split(images, 32)]).numpy()
    return logits


def _preprocessing(found: FoundModel, given: Preprocessing | None, data: DataLike | None) -> Preprocessing | None:
    known = given or found.preprocessing
    if known is not None and isinstance(data, DataSettings) and data.crop_pct is not None:
        return replace(known, crop_pct=data.crop_pct)
    return known


def _check(found: FoundModel, known: Preprocessing | None, settings: ExportSettings, data: DataLike | None) -> None:
    """Refuse what cannot work, before long work."""
    refuse_unsupported_state(found.model, "exported")
    if data is not None or settings.with_preprocessing:
        known_preprocessing(known, found.name)
    if settings.precision == "int8" and data is None:
        raise ValueError("precision ('int8') needs data: images, labelled or not, to calibrate on, such as a folder")


def _check_softmax(found: FoundModel, net: Classifier) -> None:
    """Refuse a softmax over what is no choice among classes."""
    if not net.gives_scores:
        raise ValueError(
            f"with_preprocessing (true) ends in a softmax, and model ({found.name}) gives features, for it has no "
            "classes: leave it out"
        )
    if found.multi_label or net.num_outputs == 1:
        scores = "has several labels an image" if found.multi_label else "gives one score an image"
        raise ValueError(
            f"with_preprocessing (true) ends in a softmax, and model ({found.name}) {scores}: export its logits, of "
            "which a probability is the sigmoid"
        )


def _describe(
    found: FoundModel, net: Classifier, size: tuple[int, int], known: Preprocessing | None, settings: ExportSettings
) -> ExportInfo:
    names = found.class_names
    merging = any(is_merging(module) for module in found.model.modules())
    return ExportInfo(
        model=_name(found.name),
        format=settings.format,
        precision=settings.precision,
        image_size=size,
        channels=net.channels,
        num_classes=net.num_outputs,
        dynamic_batch=settings.dynamic_batch,
        with_preprocessing=settings.with_preprocessing,
        preprocessing=known,
        class_names=names if names is not None and len(names) == net.num_outputs else None,
        mergers=tuple(
            ExportedMerger(m.after, m.num_tokens, m.num_kept_prefix_tokens, type(m.module).__name__, m.positions)
            for m in (mergers(found.model) if merging else ())
        ),
        float_layers=(),
        patchmerger=__version__,
        placing=placing_of(found.model),
        multi_label=found.multi_label,
        gives_features=not net.gives_scores,
    )


def _images(
    info: ExportInfo, known: Preprocessing | None, settings: ExportSettings, data: DataLike | None
) -> ExportImages:
    height, width = info.image_size
    if data is None or known is None:
        shape, count = (info.channels, height, width), min(settings.parity_images, sum(BATCHES))
        made = ExportImages(
            noise(shape, count, known, with_pixels=settings.with_preprocessing, seed=settings.seed), None
        )
        return _in_other_sizes(made, info, known)
    if height != width or info.channels != 3:
        raise ValueError(
            f"data is for square RGB images, and model ({info.model}) takes {info.channels} × {height} × {width}: "
            "leave data out, and noise is compared on"
        )
    return _in_other_sizes(prepare_images(data, known, height, settings), info, known)


def _in_other_sizes(images: ExportImages, info: ExportInfo, known: Preprocessing | None) -> ExportImages:
    """With some of them in two other sizes, for a file that takes any; the last is the one that is not square."""
    if info.size_step is None:
        return images
    sizes = other_sizes(info.image_size, info.size_step)
    return replace(images, other_sizes=tuple(images.parity.resized(_FEW, size, known) for size in sizes))


def _name(name: str) -> str:
    """What a file calls the model that it was made of: no path of the machine that it was made on."""
    path = Path(name)
    if not path.exists():
        return name
    return f"{path.resolve().parent.name}/{path.name}" if path.name == "model" else path.resolve().name
