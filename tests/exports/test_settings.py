from pathlib import Path

import pytest

from patchmerger.exports import ExportSettings
from patchmerger.exports.settings import MAX_DIFFERENCE, MIN_AGREEMENT, PRECISIONS


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"format": "tflite"}, r"format \('tflite'\).*'onnx'"),
        ({"precision": "fp8"}, r"precision \('fp8'\).*'int8'"),
        ({"precision": "bf16"}, r"precision \('bf16'\).*'onnx'.*openvino, torch"),
        ({"format": "torch", "precision": "int8"}, r"precision \('int8'\).*'torch'.*onnx, openvino"),
        ({"image_size": 0}, r"image_size \(0\)"),
        ({"format": "openvino", "dynamic_size": True}, r"dynamic_size \(true\).*'openvino'.*'onnx'"),
        ({"opset": 9}, r"opset \(9\).*18 to 24"),
        ({"max_difference": -1.0}, r"max_difference \(-1.0\)"),
        ({"max_difference": float("nan")}, r"max_difference \(nan\)"),
        ({"min_agreement": 1.5}, r"min_agreement \(1.5\)"),
        ({"parity_images": 0}, r"parity_images \(0\)"),
        ({"calibration_images": 4}, r"calibration_images \(4\).*32"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        ExportSettings(**wrong)


def test_a_name_says_the_format():
    ExportSettings().check_name(Path("vit.onnx"))
    ExportSettings(format="openvino").check_name(Path("vit-openvino"))
    with pytest.raises(ValueError, match=r"out \(vit.pt\).*\.onnx"):
        ExportSettings().check_name(Path("vit.pt"))
    with pytest.raises(ValueError, match=r"out \(vit.xml\).*folder.*vit-openvino"):
        ExportSettings(format="openvino").check_name(Path("vit.xml"))


def test_tolerances_are_those_of_the_precision_unless_given():
    for precision in PRECISIONS["openvino"]:
        settings = ExportSettings(format="openvino", precision=precision)
        assert settings.tolerance == (MAX_DIFFERENCE[precision], MIN_AGREEMENT[precision])
    assert ExportSettings(max_difference=0.0, min_agreement=0.5).tolerance == (0.0, 0.5)
