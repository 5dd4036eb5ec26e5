import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_images
from exports.conftest import PREPROCESSING, tiny
from patchmerger.data.decoding import decode
from patchmerger.data.transforms import EvalTransform, normalize
from patchmerger.exports import ExportSettings, export, is_exported, open_exported
from patchmerger.prediction import Predictor
from test_docs import ROOT, blocks

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["patchmerger"] = None  # an import of either fails
"""


def test_an_onnx_file_gives_what_the_model_gives(onnx_file):
    model, images = open_exported(onnx_file.path, threads=1), make_images(5)
    with torch.no_grad():
        eager = tiny()(images).numpy()
    np.testing.assert_allclose(model(images.numpy()), eager, atol=1e-5)
    np.testing.assert_allclose(model.logits(images.numpy()), eager, atol=1e-5)
    assert model.runtime.startswith("onnxruntime ")
    assert model.info == onnx_file.info
    assert model.size == onnx_file.path.stat().st_size == onnx_file.size


def test_the_program_of_the_page_runs_an_onnx_file_where_there_is_no_torch(onnx_file, tmp_path):
    (program,) = [each.text for each in blocks(ROOT / "docs" / "export.md", "python") if "PIL" in each.text]
    shutil.copy(onnx_file.path, tmp_path / "vit.onnx")
    photo = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 40).convert("RGB")
    code = program.replace('Image.new("RGB", (60, 40), "brown").save("picture.jpg")', "")
    code = code.replace("picture.jpg", "picture.png")
    photo.save(tmp_path / "picture.png")
    code = f"{WITHOUT_TORCH}{code}\nprint(json.dumps([about, scores.tolist()]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    about, (scores,) = json.loads(done.stdout.splitlines()[-1])
    assert about["mergers"][0]["num_tokens"] == 4
    expected = Predictor(onnx_file.path).scorer.scores(normalize(prepared(photo), PREPROCESSING))[0]
    np.testing.assert_allclose(scores, expected.numpy(), atol=0.02)  # torchvision's filter rounds in another way
    assert done.stdout.splitlines()[0] == str(int(expected.argmax()))


def prepared(photo: Image.Image) -> torch.Tensor:
    return EvalTransform(32, PREPROCESSING)(decode(photo))[None]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_openvino_computes_a_file_in_no_coarser_format_than_its_own(precision, tmp_path):
    made = export(tiny(), tmp_path / "vit", ExportSettings(format="openvino", precision=precision))
    computed = open_exported(made.path)._compiled.get_property("INFERENCE_PRECISION_HINT")
    assert computed.to_string() in {"fp32": ("f32",), "fp16": ("f16", "f32")}[precision]


def test_images_of_another_size_or_kind_are_refused(onnx_file):
    model = open_exported(onnx_file.path, threads=1)
    with pytest.raises(ValueError, match=r"images \(2, 3, 48, 48\).*\(B, 3, 32, 32\).*fixed"):
        model(make_images(2, 48).numpy())
    with pytest.raises(ValueError, match=r"images \(float64\) must be float32"):
        model(make_images(2).double().numpy())
    with pytest.raises(ValueError, match=r"images \(0, 3, 32, 32\)"):
        model(make_images(2).numpy()[:0])


def test_damaged_and_foreign_files_are_refused(onnx_file, tmp_path):
    whole = onnx_file.path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.onnx is damaged, or no ONNX file"):
        open_exported(tmp_path / "cut.onnx")
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.pt2 is damaged, or no file of torch\.export"):
        open_exported(tmp_path / "text.pt2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder\) is no exported file.*\.onnx"):
        open_exported(tmp_path / "folder")
    (tmp_path / "folder" / "model.xml").write_text("<net/>")
    with pytest.raises(ValueError, match=r"folder\) has no model\.bin"):
        open_exported(tmp_path / "folder")
    (tmp_path / "folder" / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"folder is damaged, or no OpenVINO file"):
        open_exported(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"model \(.*missing\.onnx\) does not exist"):
        open_exported(tmp_path / "missing.onnx")


def test_files_are_known_by_their_names(onnx_file, tmp_path):
    assert is_exported(onnx_file.path)
    assert is_exported("vit.pt2")
    assert not is_exported(tmp_path)
    assert not is_exported("vit_small_patch16_224")


def test_a_foreign_onnx_file_is_refused(onnx_file, tmp_path):
    import onnx

    proto = onnx.load(onnx_file.path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"foreign\.onnx was not written by patchmerger export"):
        open_exported(tmp_path / "foreign.onnx")
