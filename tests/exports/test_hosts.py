"""A merged model of each host and pooling, in each format: the same outputs at any batch size."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_images, make_vit
from exports.conftest import PREPROCESSING, tiny
from exports.test_quantisation import Pictures
from hosts.families import make_family
from hosts.test_torchvision import make_plain as make_torchvision
from hosts.tiny import make_model as make_transformers
from patchmerger import insert
from patchmerger.exports import ExportSettings, export, open_exported, openvino_format, writing
from patchmerger.exports.settings import SUFFIXES, Format

FORMATS: tuple[Format, ...] = ("onnx", "openvino", "torch")
LOCATED = {"prior": "grid"}
SMALL = {"depth": 2, "embed_dim": 16}

# What it is → how the plain model is made, and what of the merger is asked for.
HOSTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "class token, located queries": (lambda: make_vit("class token", **SMALL), LOCATED),
    "class token, heads": (lambda: make_vit("class token", **SMALL), {"prior": "rows", "num_heads": 2}),
    "average pooling by heads": (lambda: make_vit("class token", **SMALL), {"reducer": "average", "num_heads": 2}),
    "average pooling": (lambda: make_vit("average pooling", **SMALL), {}),
    "attention pooling": (lambda: make_vit("attention pooling", **SMALL), {}),
    "registers, LayerScale": (lambda: make_vit("registers, LayerScale", **SMALL), {}),
    "RoPE axial, centroids": (lambda: make_family("RoPE axial"), {}),
    "RoPE mixed, located": (lambda: make_family("RoPE mixed"), LOCATED),
    "DINOv3": (lambda: make_family("DINOv3"), {}),
    "NaFlex average": (lambda: make_family("NaFlex average"), {}),
    "NaFlex axial, located": (lambda: make_family("NaFlex axial"), LOCATED),
    "BEiT without bias": (lambda: make_family("BEiT"), {"positions": "drop"}),
    "torchvision": (make_torchvision, {}),
    "transformers ViT": (lambda: make_transformers("ViTForImageClassification"), {}),
    "transformers DINOv2, registers": (
        lambda: make_transformers("Dinov2WithRegistersForImageClassification"),
        LOCATED,
    ),
    "ToMe, proportional attention": (lambda: make_vit("class token", **SMALL), {"reducer": "tome"}),
    "ATS": (lambda: make_vit("class token", **SMALL), {"reducer": "ats"}),
    "ATC, a loop": (lambda: make_vit("class token", **SMALL), {"reducer": "atc"}),
    "fixed pattern": (lambda: make_vit("class token", **SMALL), {"reducer": "fixed-l2"}),
    "transformers SigLIP": (lambda: make_transformers("SiglipForImageClassification"), {}),
}


def merged(name: str) -> nn.Module:
    make, arguments = HOSTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return insert(make().eval(), 4, 1, **arguments)


def name_of(folder: Path, format: Format) -> Path:
    return folder / f"vit{SUFFIXES[format]}"


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_a_merged_model_of_each_host_exports(host, tmp_path, monkeypatch):
    model, programs, trace = merged(host), [], writing.trace

    def once(*arguments):  # tracing takes half of the time
        if not programs:
            programs.append(trace(*arguments))
        return programs[0]

    monkeypatch.setattr(writing, "trace", once)
    for format in FORMATS:
        out = name_of(tmp_path, format)
        made = export(model, out, ExportSettings(format=format))
        assert made.parity.batches == (1, 3, 32)
        assert made.parity.largest < 1e-4
        assert [m.num_tokens for m in made.info.mergers] == [4]


def built_for_any_size() -> nn.Module:
    """Another way to what an export makes of the model of one size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return insert(make_vit("class token", **SMALL, dynamic_img_size=True).eval(), 4, 1, **LOCATED)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["class token, located queries", "transformers DINOv2, registers"])
def test_one_file_for_images_of_any_size(host, tmp_path):
    model = merged(host)
    made = export(model, tmp_path / "x.onnx", ExportSettings(dynamic_size=True))
    assert made.info.size_step == 8
    assert made.parity.sizes == ((32, 32), (48, 48), (40, 56))
    assert made.parity.largest < 1e-4
    with pytest.raises(ValueError, match=r"images of 40 × 36 pixels.*multiples of 8"):
        open_exported(made.path)(np.zeros((1, 3, 40, 36), np.float32))
    if host == "class token, located queries":
        images = torch.randn(2, 3, 24, 64)
        with torch.no_grad():
            expected = built_for_any_size()(images).numpy()
        np.testing.assert_allclose(open_exported(made.path)(images.numpy()), expected, atol=1e-5)
        with pytest.raises(ValueError, match=r"images \(2, 3, 24, 64\) must be \(B, 3, 32, 32\)"), torch.no_grad():
            open_exported(export(model, tmp_path / "y.pt2", ExportSettings(format="torch")).path)(images.numpy())


@pytest.mark.parametrize("host", ["torchvision", "BEiT without bias", "RoPE axial, centroids"])
def test_models_of_one_size_are_refused_for_any(host, tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_size \(true\): \w+ takes images of (32 × 32|48 × 48) pixels alone"):
        export(merged(host), tmp_path / "x.onnx", ExportSettings(dynamic_size=True))
    assert list(tmp_path.iterdir()) == []


def test_any_size_is_refused_where_the_number_of_tokens_decides_the_steps(tmp_path):
    with pytest.raises(ValueError, match=r"dynamic_size \(true\): ToMe takes more steps.*each image_size"):
        export(merged("ToMe, proportional attention"), tmp_path / "x.onnx", ExportSettings(dynamic_size=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision"),
    [("onnx", "fp16"), ("openvino", "fp16"), ("openvino", "bf16"), ("torch", "fp16"), ("torch", "bf16"),
     ("openvino", "int8"), ("aotinductor", "fp32")],
)  # fmt: skip
def test_each_number_format(format, precision, tmp_path):
    data = Pictures() if precision == "int8" else None
    agreement = 0.8 if data is None else 0.5  # of six images and random weights
    settings = ExportSettings(format=format, precision=precision, calibration_images=32, min_agreement=agreement)
    made = export(tiny(), name_of(tmp_path, format), settings, data=data, preprocessing=PREPROCESSING)
    assert made.info.precision == precision
    assert made.info.preprocessing == PREPROCESSING
    assert open_exported(made.path).info == made.info
    if precision in ("fp16", "bf16", "int8"):
        assert made.parity.largest > 0


@pytest.mark.slow
def test_int8_where_openvino_reads_a_model_as_onnx(tmp_path):
    settings = ExportSettings(format="openvino", precision="int8", calibration_images=32, min_agreement=0.5)
    made = export(merged("ATC, a loop"), tmp_path / "vit", settings, data=Pictures(), preprocessing=PREPROCESSING)
    assert made.parity.largest > 0
    layers = list(ElementTree.parse(tmp_path / "vit" / "model.xml").iter("layer"))
    assert sum(layer.get("type") == "FakeQuantize" for layer in layers) >= 8  # the products of two blocks


@pytest.mark.slow
def test_sums_by_index_in_half_precision(tmp_path):
    made = export(merged("ToMe, proportional attention"), tmp_path / "vit.onnx", ExportSettings(precision="fp16"))
    assert 0 < made.parity.largest < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_preprocessing_built_in_gives_probabilities_of_pixels(format, tmp_path):
    settings = ExportSettings(format=format, with_preprocessing=True, dynamic_batch=format == "onnx")
    made = export(tiny(), name_of(tmp_path, format), settings, data=Pictures(), preprocessing=PREPROCESSING)
    model, pixels = open_exported(made.path), Pictures().pixels[:3]
    normalized = (pixels / 255 - torch.tensor(PREPROCESSING.mean)[:, None, None]) / torch.tensor(PREPROCESSING.std)[
        :, None, None
    ]
    with torch.no_grad():
        wanted = tiny()(normalized).softmax(dim=1)
    found = torch.from_numpy(model(pixels.permute(0, 2, 3, 1).contiguous().numpy()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        torch.from_numpy(model.logits(normalized.numpy())).softmax(dim=1), wanted, atol=1e-5, rtol=1e-4
    )


@pytest.mark.slow
def test_an_older_opset_and_another_image_size(tmp_path):
    import onnx

    made = export(tiny(), tmp_path / "x.onnx", ExportSettings(opset=20, image_size=48))
    assert made.info.image_size == (48, 48)
    assert open_exported(made.path)(make_images(2, 48).numpy()).shape == (2, 5)
    assert onnx.load(made.path).opset_import[0].version == 20


@pytest.mark.parametrize("prior", [None, "grid"])
def test_a_model_of_any_size_is_exported_in_another_one(prior, tmp_path):
    model = insert(make_vit("class token", **SMALL, dynamic_img_size=True), 4, 1, prior=prior)
    with torch.no_grad():
        expected = model(make_images(2, 48)).numpy()
    made = export(model, tmp_path / "x.pt2", ExportSettings(format="torch", image_size=48))
    assert made.info.image_size == (48, 48)
    np.testing.assert_allclose(open_exported(made.path)(make_images(2, 48).numpy()), expected, atol=1e-5)
    assert model.patch_embed.img_size == (32, 32)


def test_naflex_is_exported_in_another_size(tmp_path):
    model = merged("NaFlex axial, located")
    with torch.no_grad():
        expected = model(make_images(2, 48)).numpy()
    made = export(model, tmp_path / "x.pt2", ExportSettings(format="torch", image_size=48))
    assert made.info.image_size == (48, 48)
    np.testing.assert_allclose(open_exported(made.path)(make_images(2, 48).numpy()), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"image_size \(44, 44\).*patch size \(8, 8\)"):
        export(model, tmp_path / "y.pt2", ExportSettings(format="torch", image_size=44))


@pytest.mark.parametrize(
    ("name", "interpolates"),
    [
        ("ViTForImageClassification", {"interpolate_pos_encoding": True}),
        ("Dinov2WithRegistersForImageClassification", {}),
        ("BeitForImageClassification with bias", {"interpolate_pos_encoding": True}),
    ],
)
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_models_of_transformers_that_interpolate_are_exported_in_another_size(name, interpolates, format, tmp_path):
    model = insert(make_transformers(name), 4, 1, positions="drop" if "Beit" in name else None)
    with torch.no_grad():
        expected = model(make_images(2, 48), **interpolates).logits
    made = export(model, name_of(tmp_path, format), ExportSettings(format=format, image_size=48))
    assert made.info.image_size == (48, 48)
    np.testing.assert_allclose(open_exported(made.path)(make_images(2, 48).numpy()), expected, atol=1e-5)
    assert model.config.image_size == 32
    with pytest.raises(ValueError, match=r"image_size \(44\) does not divide by the patch size \(8\): take 48"):
        export(model, tmp_path / "y.pt2", ExportSettings(format="torch", image_size=44))


def test_models_of_transformers_that_cannot_interpolate_are_refused(tmp_path):
    model = insert(make_transformers("CLIPForImageClassification"), 4, 1)
    with pytest.raises(ValueError, match=r"image_size \(48\) does not fit CLIPForImage.*32 × 32.*leave it out"):
        export(model, tmp_path / "x.pt2", ExportSettings(format="torch", image_size=48))


@pytest.mark.parametrize("arguments", [{}, LOCATED, {"reducer": "average"}], ids=str)
def test_openvino_repeats_no_factor_of_the_merger_for_the_batch(arguments, tmp_path):
    def repeated(model: nn.Module, name: str) -> int:
        made = export(model.eval(), tmp_path / name, ExportSettings(format="openvino", precision="fp32"))
        layers = ElementTree.parse(made.path / "model.xml").iter("layer")
        return sum(layer.get("type") in ("Broadcast", "Tile") for layer in layers)

    plain = make_vit("class token", **SMALL)
    assert repeated(plain, "plain") == 1  # the class token
    assert repeated(insert(plain, 4, 1, **arguments), "merged") == 1


def test_what_is_sliced_whole_converts_to_openvino_as_torch_2_8_traces_it(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_vit("class token", **SMALL)

        def forward(self, images):
            return torch.ops.aten.slice.Tensor(self.net(images))

    program = torch.export.export(Whole().eval(), (torch.randn(1, 3, 32, 32),))
    whole = [node for node in program.graph.nodes if node.target is torch.ops.aten.slice.Tensor]
    assert any(len(node.args) == 1 for node in whole)
    openvino_format._leave_out_whole_slices(program)
    assert not any(node.target is torch.ops.aten.slice.Tensor and len(node.args) == 1 for node in program.graph.nodes)
    assert program.module()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(("reducer", "least"), [("sinkhorn", 5), ("topk", 4), ("patchmerger", 1)])
def test_images_too_small_for_the_merger_are_refused(reducer, least, tmp_path):
    model = insert(make_vit("class token", **SMALL).eval(), 4, 1, reducer=reducer)
    made = export(model, tmp_path / "x.onnx", ExportSettings(dynamic_size=True))
    exported = open_exported(made.path)
    for patches in (1, 3, 4, 5):
        images = np.zeros((1, 3, 8, 8 * patches), np.float32)
        if patches >= least:
            assert exported(images).shape == (1, 5)
        else:
            with pytest.raises(ValueError, match=rf"8 × {8 * patches} pixels have {patches} patches.* {least} patches"):
                exported(images)
