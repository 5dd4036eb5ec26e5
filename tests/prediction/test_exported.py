"""Exported files give the classes of the model that they were made of."""

import dataclasses

import pytest
import torch

import patchmerger
from conftest import make_vit
from exports.conftest import PREPROCESSING, tiny
from patchmerger.data import Preprocessing
from patchmerger.exports import ExportSettings, export
from patchmerger.prediction import Predictor
from prediction.test_predictor import NAMES, picture

IMAGES = [picture(seed, size) for seed, size in enumerate([(40, 60), (32, 32), (90, 33)])]
SQUASHED = dataclasses.replace(PREPROCESSING, crop_mode="squash")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder and an export of one model, whose images are squashed and may have several classes."""
    folder = tmp_path_factory.mktemp("forms")
    pytest.importorskip("onnxruntime")
    patchmerger.save(tiny(), folder / "model", preprocessing=SQUASHED, class_names=NAMES, multi_label=True)
    export(folder / "model", folder / "it.onnx", ExportSettings())
    return folder


def assert_alike(file, model, tolerance):
    expected = patchmerger.predict(model, IMAGES, device="cpu")
    found = patchmerger.predict(file, IMAGES, batch_size=2)
    assert found.class_names == NAMES
    for ours, theirs in zip(found, expected, strict=True):
        assert [each.name for each in ours.classes] == [each.name for each in theirs.classes]
        assert [each.probability for each in ours.classes] == pytest.approx(
            [each.probability for each in theirs.classes], abs=tolerance
        )


def test_an_exported_file_gives_the_classes_of_the_model(files):
    assert_alike(files / "it.onnx", files / "model", 1e-5)
    assert Predictor(files / "it.onnx").multi_label


@pytest.mark.slow
def test_so_does_one_with_its_preprocessing_built_in(tmp_path):
    file, model = tmp_path / "built-in.onnx", tmp_path / "model"
    patchmerger.save(tiny(), model, preprocessing=SQUASHED, class_names=NAMES)
    export(model, file, ExportSettings(with_preprocessing=True))
    assert_alike(file, model, 2e-3)
    with pytest.raises(ValueError, match=r"multi_label \(true\): the softmax is built into"):
        Predictor(file, multi_label=True)
    with pytest.raises(ValueError, match=r"preprocessing \(mean \(0.5.*built into"):
        Predictor(file, preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "torch"])
def test_other_formats_too(files, tmp_path, kind):
    out = tmp_path / {"openvino": "it", "torch": "it.pt2"}[kind]
    export(files / "model", out, ExportSettings(format=kind))
    ours, theirs = (patchmerger.predict(model, IMAGES, device="cpu") for model in (out, files / "model"))
    assert [p.classes[0].index for p in ours] == [p.classes[0].index for p in theirs]


def test_a_file_of_a_model_without_classes_gives_its_features(tmp_path):
    model = make_vit(num_classes=0, depth=2, embed_dim=16)
    made = export(model, tmp_path / "vit.pt2", ExportSettings(format="torch"), preprocessing=PREPROCESSING)
    predictor = Predictor(made.path)
    with pytest.raises(ValueError, match=r"has no classes: ask for its features"):
        predictor(IMAGES)
    expected = Predictor(model, preprocessing=PREPROCESSING)(IMAGES, features=True).features
    torch.testing.assert_close(predictor(IMAGES, features=True).features, expected, atol=1e-5, rtol=1e-4)
    settings = ExportSettings(format="torch", with_preprocessing=True)
    with pytest.raises(ValueError, match=r"with_preprocessing \(true\).*gives features"):
        export(model, tmp_path / "other.pt2", settings, preprocessing=PREPROCESSING)


def test_what_a_file_cannot_give_is_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"features \(true\).*scores alone"):
        patchmerger.predict(files / "it.onnx", IMAGES, features=True)
    for device in ("cuda", "gpu"):
        with pytest.raises(ValueError, match=rf"device \('{device}'\) must be 'cpu'"):
            Predictor(files / "it.onnx", device=device)
    (tmp_path / "cut.onnx").write_bytes((files / "it.onnx").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut\.onnx is damaged"):
        Predictor(tmp_path / "cut.onnx")
    with pytest.raises(FileNotFoundError, match=r"nothing\.onnx"):
        Predictor(tmp_path / "nothing.onnx")
