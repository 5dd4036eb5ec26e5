import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_images
from exports.conftest import PREPROCESSING, nothing_but, tiny
from patchmerger.exports import ExportSettings, ParityError, export, open_exported, writing
from patchmerger.exports.quantisation import float_layer_steps, in_merger, kept_nodes, quantisation_errors
from patchmerger.exports.tracing import classifier_for


class Pictures(torch.utils.data.Dataset):
    """Pixels without labels, of one size."""

    def __init__(self, number: int = 60) -> None:
        self.pixels = torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.manual_seed(0))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int):
        return self.pixels[index]


def classifier():
    return classifier_for(tiny(), ExportSettings(), None, torch.float32)


def test_errors_are_those_of_a_plain_loop_and_rank_a_bad_layer_first():
    model, images = classifier(), make_images(4)
    qkv = model.net.net.blocks[0].attn.qkv
    with torch.no_grad():
        qkv.weight[:, 0] *= 300  # one feature outweighs all others, which then have few steps left
    errors = quantisation_errors(model, images)
    linear = [n for n, m in model.net.net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert list(errors) == [name for name in linear if not in_merger(name)]
    seen: list[torch.Tensor] = []
    with qkv.register_forward_hook(lambda _, given, __: seen.append(given[0])), torch.no_grad():
        model(images)
    x, w = seen[0].double().flatten(0, 1).numpy(), qkv.weight.detach().double().numpy()
    low, high = min(0.0, x.min()), max(0.0, x.max())
    rounded_x = np.round((x - low) / ((high - low) / 255)) * ((high - low) / 255) + low
    scale = np.abs(w).max(axis=1, keepdims=True) / 64
    exact, rough = x @ w.T, rounded_x @ (np.round(w / scale) * scale).T
    bias = qkv.bias.detach().double().numpy()
    expected = ((rough - exact) ** 2).sum() / ((exact + bias) ** 2).sum()
    assert errors["blocks.0.attn.qkv"] == pytest.approx(expected, rel=0.05)
    steps = list(float_layer_steps(model, images))
    assert steps[0] == ()
    assert "blocks.0.attn.qkv" in steps[1] or errors["blocks.0.attn.qkv"] < max(errors.values())
    assert [len(step) for step in steps] == sorted(len(step) for step in steps)


def test_mergers_and_named_layers_are_kept():
    nodes = {"blocks.0.merger": ["a"], "blocks.0.merger.norm": ["b"], "blocks.0.mlp.fc1": ["c"], "head": ["d", "e"]}
    assert kept_nodes(nodes, ()) == ["a", "b"]
    assert kept_nodes(nodes, ("head",)) == ["a", "b", "d", "e"]


def test_too_few_images_are_refused(tmp_path):
    settings = ExportSettings(precision="int8")
    with pytest.raises(ValueError, match=r"data \(Pictures\) has \d+ images to calibrate on: 32 at least"):
        export(tiny(), tmp_path / "x.onnx", settings, data=Pictures(20), preprocessing=PREPROCESSING)
    assert nothing_but(tmp_path)


def test_int8_quantises_all_but_the_merger(tmp_path):
    import onnx

    settings = ExportSettings(precision="int8", calibration_images=32, min_agreement=0.0)
    made = export(tiny(), tmp_path / "x.onnx", settings, data=Pictures(), preprocessing=PREPROCESSING)
    assert made.parity.real
    assert made.info.float_layers == ()
    assert open_exported(made.path).info.precision == "int8"
    graph = onnx.load(made.path).graph
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    whole = [node for node in products if makers.get(node.input[0], node).op_type != "DequantizeLinear"]
    assert len(whole) == 2  # W Xᵀ and A X of the merger
    assert len(products) > 8
    assert nothing_but(tmp_path, "x.onnx", "x.onnx.json")


def test_layers_go_back_to_floating_point_until_the_file_agrees(tmp_path, monkeypatch, onnx_file):
    shares: list[tuple[str, ...]] = []

    def quantise(source, path, nodes, images, info, settings):
        shares.append(info.float_layers)
        path.write_bytes(source.read_bytes())

    measured = writing.measure_parity

    def measure(path, images, eager):
        return measured(path, images, eager + (1.0 if len(shares) < 3 else 0.0))

    def write(program, model, path, info, settings):
        path.write_bytes(onnx_file.path.read_bytes())
        return {}

    monkeypatch.setattr(writing, "write_onnx", write)
    monkeypatch.setattr(writing, "quantise_onnx", quantise)
    monkeypatch.setattr(writing, "measure_parity", measure)
    settings = ExportSettings(precision="int8", calibration_images=32, max_difference=0.01)
    made = export(tiny(), tmp_path / "x.onnx", settings, data=Pictures(), preprocessing=PREPROCESSING)
    assert [len(layers) for layers in shares] == [0, 1, 2]
    assert made.info.float_layers == shares[-1]
    assert set(shares[1]) < set(shares[2])
    shares.clear()
    monkeypatch.setattr(writing, "measure_parity", lambda path, images, eager: measured(path, images, eager + 1.0))
    with pytest.raises(ParityError, match=r"onnx \(int8\).*largest difference"):
        export(tiny(), tmp_path / "y.onnx", settings, data=Pictures(), preprocessing=PREPROCESSING)
    assert len(shares) == 4
    assert nothing_but(tmp_path, "x.onnx", "x.onnx.json")
