"""ONNX: written by torch's dynamo exporter, checked by onnx, described in its metadata; int8 by ONNX Runtime."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from patchmerger.exports.metadata import INPUT, ExportInfo
from patchmerger.exports.quantisation import kept_nodes
from patchmerger.exports.settings import ExportSettings
from patchmerger.exports.tracing import ImageClassifier, refused_by_operation
from patchmerger.runs.extras import import_extra
from patchmerger.runs.silence import silent_libraries

_LIMIT = 2**31 - 2**20
"""Bytes of a file that protobuf reads."""

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_BATCH = 8  # images that are calibrated on at once


def write_onnx(
    program: ExportedProgram, model: ImageClassifier, path: Path, info: ExportInfo, settings: ExportSettings
) -> dict[str, list[str]]:
    """Write a program as one ONNX file; gives the nodes of each module of the model: of ``"blocks.5.merger"``, say.

    Raises:
        ValueError: An operation has no counterpart in ONNX, or the file would be larger than 2 GiB.
        MissingExtraError: A library of the extra "export" is not installed.
    """
    proto = make_onnx(program, model, info, settings)
    nodes = _nodes_by_module(proto)
    describe_onnx(proto, info, settings)
    path.write_bytes(proto.SerializeToString())
    check_onnx(path)
    return nodes


def make_onnx(program: ExportedProgram, model: ImageClassifier, info: ExportInfo, settings: ExportSettings) -> Any:
    """A program as onnx's ``ModelProto``, as its exporter makes it.

    Raises:
        ValueError: An operation has no counterpart in ONNX, or the file would be larger than 2 GiB.
        MissingExtraError: A library of the extra "export" is not installed.
    """
    for library in ("onnx", "onnxscript"):
        import_extra(library, "export", f"format ({settings.format!r})")
    size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    if size > _LIMIT:
        raise ValueError(
            f"model has weights of {size / 2**30:.1f} GiB, and an ONNX file holds 2: export it with precision 'fp16', "
            "or in the format 'openvino'"
        )
    with refused_by_operation(model, "written as ONNX"):
        written: Any = torch.onnx.export(
            program, dynamo=True, opset_version=settings.opset, input_names=[INPUT], output_names=[info.output],
            optimize=True, verbose=False,
        )  # fmt: skip
    return written.model_proto


def check_onnx(path: Path) -> None:
    """Run onnx's own checker, with the inference of all shapes."""
    onnx = import_extra("onnx", "export", "format ('onnx')")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"onnx's checker refuses the exported file: {' '.join(str(error).split())[:240]}") from error


def _nodes_by_module(proto: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if module := module_of(node):
            found.setdefault(module, []).append(node.name)
    return found


def module_of(node: Any) -> str | None:
    """The module of the model that a node (onnx's ``NodeProto``) was made of: "blocks.5.merger", say."""
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = ast.literal_eval(scopes)[:-1]  # the last is the node's own
    return modules[-1].removeprefix("net.net.") if modules else None


def describe_onnx(proto: Any, info: ExportInfo, settings: ExportSettings) -> None:
    """Describe the model (onnx's ``ModelProto``) in place of its exporter, which names files of this machine."""
    for each in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        proto.graph,
        proto,
    ):
        del each.metadata_props[:]
        each.doc_string = ""
    for each in proto.graph.initializer:
        del each.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
    proto.producer_name, proto.producer_version = "patchmerger", info.patchmerger
    if settings.dynamic_batch:
        for tensor in (*proto.graph.input, *proto.graph.output):
            tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    if info.size_step is not None:
        for place, name in enumerate(("height", "width"), start=1 if info.with_preprocessing else 2):
            proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    for name, value in info.as_properties().items():
        proto.metadata_props.add(key=name, value=value)


def quantise_onnx(
    source: Path,
    path: Path,
    nodes: dict[str, list[str]],
    images: NDArray[Any],
    info: ExportInfo,
    settings: ExportSettings,
) -> None:
    """Quantise an ONNX file: activations to uint8 with one scale, weights to int8 with one for each row.

    Weights have seven bits, so that no sum overflows on a CPU without VNNI. Products of two activations, such as the
    scores of attention, and ``info.float_layers`` stay in floating point.
    """
    onnx = import_extra("onnx", "export", "precision ('int8')")
    quantization = import_extra("onnxruntime.quantization", "export", "precision ('int8')")
    proto = onnx.load(source)
    weights = {tensor.name for tensor in proto.graph.initializer}
    unweighted = [
        node.name for node in proto.graph.node if node.op_type in _PRODUCTS and not weights.intersection(node.input)
    ]
    with silent_libraries():
        quantization.quantize_static(
            str(source), str(path), _Reader(images, _BATCH if info.dynamic_batch else 1),
            quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(_PRODUCTS), per_channel=True,
            reduce_range=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=[*unweighted, *kept_nodes(nodes, info.float_layers)],
        )  # fmt: skip
    quantised = onnx.load(path)
    describe_onnx(quantised, info, settings)
    path.write_bytes(quantised.SerializeToString())
    check_onnx(path)


class _Reader:
    """The images as ONNX Runtime's calibration asks for them."""

    def __init__(self, images: NDArray[Any], batch: int) -> None:
        self._batches: Iterator[NDArray[Any]] = iter(
            np.array_split(images, range(batch, len(images), batch)) if len(images) else []
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch by the name of the input; ``None`` after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}
