"""int8 for OpenVINO: quantisation after training by NNCF, with smoothed activations and corrected biases."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from numpy.typing import NDArray

from patchmerger.exports.intel import import_intel
from patchmerger.exports.metadata import ExportInfo
from patchmerger.exports.quantisation import kept_nodes
from patchmerger.runs.silence import silent_libraries

_NEVER_QUANTISED = ("Softmax", "ScaledDotProductAttention")
_PRODUCTS = ("MatMul", "Convolution", *_NEVER_QUANTISED)


def quantise_openvino(converted: Any, nodes: dict[str, list[str]], images: NDArray[Any], info: ExportInfo) -> Any:
    """OpenVINO's model in int8, in memory.

    Args:
        converted: In float32; it stays as it is.
        nodes: The nodes of each module.
        images: To calibrate on, as the model takes them.
        info: Its ``float_layers`` stay in floating point.
    """
    nncf = import_intel("nncf", "precision ('int8') with format ('openvino')")
    kinds = {operation.get_friendly_name(): operation.get_type_name() for operation in converted.get_ops()}
    kept = [name for name in kept_nodes(nodes, info.float_layers) if kinds[name] in _PRODUCTS]
    rows = [images[row : row + 1] for row in range(len(images))]
    with silent_libraries(), contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            converted.clone(),
            nncf.Dataset(rows),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            ignored_scope=nncf.IgnoredScope(names=kept, types=list(_NEVER_QUANTISED), validate=False),
        )
