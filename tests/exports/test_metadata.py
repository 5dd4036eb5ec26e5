import json
from dataclasses import replace

import pytest

from patchmerger.data import Preprocessing
from patchmerger.exports.metadata import SCHEMA, ExportedMerger, ExportInfo, read_info
from patchmerger.placing import PlacingSettings

INFO = ExportInfo(
    model="vit", format="onnx", precision="int8", image_size=(32, 48), channels=3, num_classes=2, dynamic_batch=True,
    with_preprocessing=False, preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), 0.9),
    class_names=("Katze", "Übel, „so“"), mergers=(ExportedMerger(6, 8, 1, "PatchMerger", "centroid"),),
    float_layers=("blocks.0.mlp.fc2",), patchmerger="0.1.0",
)  # fmt: skip


@pytest.mark.parametrize(
    "info",
    [
        INFO,
        replace(INFO, preprocessing=None, class_names=None, placing=PlacingSettings(24, window=(8, 6))),
    ],
)
def test_what_is_written_is_read(info):
    properties = info.as_properties()
    assert all(isinstance(text, str) for text in properties.values())
    assert read_info({**properties, "other": "of another tool"}, "x.onnx") == info


def test_foreign_and_newer_files_are_refused():
    with pytest.raises(ValueError, match=r"x\.onnx was not written by patchmerger export"):
        read_info({"channels": "3"}, "x.onnx")
    with pytest.raises(ValueError, match=rf"schema is {SCHEMA + 1}.*upgrade"):
        read_info(INFO.as_properties() | {"schema": json.dumps(SCHEMA + 1)}, "x.onnx")
    with pytest.raises(ValueError, match=r"x\.onnx.*image_size"):
        read_info(INFO.as_properties() | {"image_size": '"large"'}, "x.onnx")


def test_the_output_is_called_what_it_is():
    assert (INFO.output, replace(INFO, with_preprocessing=True).output) == ("logits", "probabilities")
