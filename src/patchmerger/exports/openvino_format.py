"""OpenVINO's IR: converted from the ``torch.export`` program, described in its runtime information; int8 by NNCF."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from patchmerger.exports.metadata import INPUT, ExportInfo
from patchmerger.exports.onnx_format import make_onnx, module_of
from patchmerger.exports.quantisation import kept_nodes
from patchmerger.exports.runtimes import XML_NAME, import_intel
from patchmerger.exports.settings import ExportSettings
from patchmerger.exports.tracing import ImageClassifier, refused_by_operation
from patchmerger.runs.silence import silent_libraries

_NEVER_QUANTISED = ("Softmax", "ScaledDotProductAttention")
_PRODUCTS = ("MatMul", "Convolution", *_NEVER_QUANTISED)


def convert_to_openvino(
    program: ExportedProgram, model: ImageClassifier, info: ExportInfo, settings: ExportSettings
) -> tuple[Any, dict[str, list[str]]]:
    """OpenVINO's model of a program, in memory, and its nodes of each module: of ``"blocks.5.merger"``, say.

    A program with what OpenVINO's reader of programs lacks, such as a loop or the antialiased resizing of a table of
    positions, is read as ONNX, which has it.

    Raises:
        ValueError: An operation has no counterpart in OpenVINO; of the two ways the first one's is named.
        MissingExtraError: OpenVINO is not installed.
    """
    import_intel("openvino", "format ('openvino')")
    try:
        converted, module_of_name = _read_program(program, model)
    except ValueError as refused:
        try:
            converted, module_of_name = _read_onnx(program, model, info, settings)
        except ValueError:
            raise refused from None
    batch = -1 if info.dynamic_batch else 1
    height, width = info.image_size
    one = [height, width, info.channels] if info.with_preprocessing else [info.channels, height, width]
    converted.reshape({0: [batch, *one]})
    converted.input(0).get_tensor().set_names({INPUT})
    converted.output(0).get_tensor().set_names({info.output})
    return converted, _nodes_by_module(module_of_name, converted)


def _read_program(program: ExportedProgram, model: ImageClassifier) -> tuple[Any, dict[str, str]]:
    """OpenVINO's model, and the module of each node by its name."""
    import openvino

    _leave_out_whole_slices(program)
    with refused_by_operation(model, "converted to OpenVINO"):
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        decoder = TorchFXPythonDecoder.from_exported_program(program)
        converted = openvino.convert_model(decoder)
    stacks = {node.name: [*node.meta.get("nn_module_stack", {}).values()] for node in decoder.pt_module.graph.nodes}
    return converted, {name: str(stack[-1][0]).removeprefix("net.net.") for name, stack in stacks.items() if stack}


def _leave_out_whole_slices(program: ExportedProgram) -> None:
    """``x[:]``, which torch 2.8 makes of the first half of ``x[:, 0]`` and OpenVINO does not read, becomes ``x``."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.slice.Tensor and len(node.args) == 1 and not node.kwargs:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)


def _read_onnx(
    program: ExportedProgram, model: ImageClassifier, info: ExportInfo, settings: ExportSettings
) -> tuple[Any, dict[str, str]]:
    """The same by way of ONNX, whose names of nodes OpenVINO keeps."""
    import openvino

    proto = make_onnx(program, model, info, settings)
    with tempfile.TemporaryDirectory() as folder, refused_by_operation(model, "converted to OpenVINO"):
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        converted = openvino.convert_model(path)
    return converted, {node.name: module for node in proto.graph.node if (module := module_of(node))}


def save_openvino(converted: Any, folder: Path, info: ExportInfo) -> None:
    """Write OpenVINO's model with our description: ``model.xml`` and ``model.bin`` in ``folder``."""
    openvino = import_intel("openvino", "format ('openvino')")
    # OpenVINO's constants point to these numbers, so that they must live until the file is written.
    rounded = _round_weights_to_bf16(converted) if info.precision == "bf16" else []
    for name, value in info.as_properties().items():
        converted.set_rt_info(value, ["patchmerger", name])
    with silent_libraries():
        openvino.save_model(converted, str(folder / XML_NAME), compress_to_fp16=info.precision == "fp16")
    rounded.clear()


def _round_weights_to_bf16(converted: Any) -> list[NDArray[np.uint16]]:
    """Make each float32 weight bf16, with the conversion back behind it, which is folded when the file is loaded."""
    import openvino
    from openvino import opset13

    kept = []
    for node in converted.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        weights = np.array(node.data)
        if weights.size < 2:
            continue
        rounded = torch.from_numpy(weights).to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
        kept.append(rounded)
        stored = openvino.Tensor(rounded.reshape(-1), list(weights.shape), openvino.Type.bf16)
        back = opset13.convert(openvino.op.Constant(stored), "f32")
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(back.output(0))
    return kept


def _nodes_by_module(module_of_name: Mapping[str, str], converted: Any) -> dict[str, list[str]]:
    """OpenVINO's names begin with those of the nodes that they were made of."""
    found: dict[str, list[str]] = {}
    for operation in converted.get_ops():
        name = operation.get_friendly_name()
        module = module_of_name.get(name.split("/")[0])
        if module is not None:
            found.setdefault(module, []).append(name)
    return found


def quantise_openvino(converted: Any, nodes: dict[str, list[str]], images: NDArray[Any], info: ExportInfo) -> Any:
    """OpenVINO's model in int8, in memory: by NNCF, with smoothed activations and corrected biases.

    ``converted``, in float32, stays as it is; ``info.float_layers`` stay in floating point.
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
