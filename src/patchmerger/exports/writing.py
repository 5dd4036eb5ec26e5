"""The file of each format: traced, written, and run to see how near to the eager model it is."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports.images import ExportImages, Images
from patchmerger.exports.metadata import ExportInfo
from patchmerger.exports.onnx_format import quantise_onnx, write_onnx
from patchmerger.exports.openvino_format import convert_to_openvino, quantise_openvino, save_openvino
from patchmerger.exports.parity import Parity, compare_logits, compare_probabilities, in_batches
from patchmerger.exports.quantisation import float_layer_steps
from patchmerger.exports.runtimes import INFO_NAME, open_exported
from patchmerger.exports.settings import ExportSettings
from patchmerger.exports.tracing import DTYPES, ImageClassifier, classifier_for, refused_by_operation, trace
from patchmerger.runs.silence import silent_libraries


def write_file(
    net: nn.Module,
    path: Path,
    info: ExportInfo,
    known: Preprocessing | None,
    settings: ExportSettings,
    images: ExportImages,
    eager: NDArray[np.float32],
    arguments: Mapping[str, Any],
) -> tuple[ExportInfo, Parity]:
    """Write the file, as near to the eager model as it must be; ``net`` is called with ``arguments``, as that was."""
    # OpenVINO computes in the number format chosen when it loads the file; its graph is one of float32.
    dtype = torch.float32 if settings.format == "openvino" else DTYPES[settings.precision]
    model = classifier_for(net, settings, known, dtype, arguments)
    example = torch.from_numpy(images.compared[-1].given[:1]).repeat(2 if settings.dynamic_batch else 1, 1, 1, 1)
    program = trace(model, example, settings, info.size_step)
    if images.calibration is not None:
        return _write_int8(program, model, path, info, settings, images, eager)
    if settings.format == "onnx":
        write_onnx(program, model, path, info, settings)
    elif settings.format == "openvino":
        save_openvino(convert_to_openvino(program, model, info, settings)[0], path, info)
    elif settings.format == "torch":
        _write_program(program, path, info)
    else:
        _write_package(program, model, path, info)
    parity = measure_parity(path, images.compared, eager)
    parity.check(settings)
    return info, parity


def _write_int8(
    program: ExportedProgram,
    model: ImageClassifier,
    path: Path,
    info: ExportInfo,
    settings: ExportSettings,
    images: ExportImages,
    eager: NDArray[np.float32],
) -> tuple[ExportInfo, Parity]:
    """Write the file in int8, with more and more layers in floating point until it is as near as it must be."""
    calibration = cast(Images, images.calibration).given
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "float.onnx"
        if settings.format == "onnx":
            nodes = write_onnx(program, model, whole, info, settings)
        else:
            converted, nodes = convert_to_openvino(program, model, info, settings)
        for float_layers in float_layer_steps(model, torch.from_numpy(calibration)):
            info = replace(info, float_layers=float_layers)
            if settings.format == "onnx":
                quantise_onnx(whole, path, nodes, calibration, info, settings)
            else:
                save_openvino(quantise_openvino(converted, nodes, calibration, info), path, info)
            parity = measure_parity(path, images.compared, eager)
            if parity.shortfall(settings) is None:
                return info, parity
    parity.check(settings)
    return info, parity


def measure_parity(path: Path, images: Sequence[Images], eager: NDArray[np.float32]) -> Parity:
    """Run an exported file and compare it with the eager model, whose logits of all images are (n, C).

    Images are in one size, or in several for a file that takes any.
    """
    exported = open_exported(path)
    runs = []
    for each in images:
        try:
            runs.append(in_batches(exported, each.given, dynamic=exported.info.dynamic_batch))
        except Exception as error:  # each runtime has errors of its own
            reason = " ".join(str(error).split())
            if exported.info.size_step is None:
                raise ValueError(
                    f"the {exported.info.format} file does not run in {exported.runtime}: {reason[-240:]}"
                ) from error
            raise ValueError(
                f"dynamic_size (true): the {exported.info.format} file does not run on images of "
                f"{each.size[0]} × {each.size[1]} pixels, as some size was fixed in it "
                f"({reason[-160:]}): leave it out, and export a file for each image_size"
            ) from error
    outputs = np.concatenate([output for output, _ in runs])
    batches = tuple(dict.fromkeys(size for _, sizes in runs for size in sizes))
    compare = compare_probabilities if exported.info.with_preprocessing else compare_logits
    first = images[0]
    found = compare(outputs, eager, source=first.source, real=first.real, batches=batches)
    return replace(found, sizes=tuple(each.size for each in images))


def _write_program(program: ExportedProgram, path: Path, info: ExportInfo) -> None:
    """Write a ``torch.export`` program, with what it says of itself among its extra files."""
    description = json.dumps(info.as_properties(), ensure_ascii=False)
    whole = io.BytesIO()  # torch aborts the process where it finds the disk full
    with silent_libraries():
        torch.export.save(program, whole, extra_files={INFO_NAME: description})
    path.write_bytes(whole.getbuffer())


def _write_package(program: ExportedProgram, model: ImageClassifier, path: Path, info: ExportInfo) -> None:
    """Compile the program by AOTInductor for machines like this one, and write the package.

    Raises:
        ValueError: It cannot be compiled: there is no compiler of C++, say.
    """
    from torch._inductor import aoti_compile_and_package

    metadata = {"patchmerger": json.dumps(info.as_properties())}
    with refused_by_operation(model, "compiled by AOTInductor"), torch.no_grad():
        aoti_compile_and_package(program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata})
