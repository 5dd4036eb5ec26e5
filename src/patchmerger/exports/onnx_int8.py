"""int8 for ONNX: static quantisation by ONNX Runtime, of the products with weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchmerger.exports.metadata import INPUT, ExportInfo
from patchmerger.exports.onnx_format import check_onnx, describe_onnx
from patchmerger.exports.quantisation import kept_nodes
from patchmerger.exports.settings import ExportSettings
from patchmerger.runs.extras import import_extra
from patchmerger.runs.silence import silent_libraries

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_BATCH = 8


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
    scores of attention, stay as they are.

    Args:
        source: The file in float32.
        path: The file to write.
        nodes: The nodes of each module.
        images: To calibrate on, as the file takes them.
        info: What the new file says of itself; its ``float_layers`` stay in floating point.
        settings: Those of the export.
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
