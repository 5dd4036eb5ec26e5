"""One tiny merged model, exported once for all tests of this folder that only read the file."""

from pathlib import Path

import pytest
from torch import nn

from conftest import make_vit
from merged_models import merge
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports import ExportedFile, ExportSettings, export

PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 0.9, "bilinear")


def tiny() -> nn.Module:
    """Two blocks, a class token, one merge."""
    return merge(make_vit(depth=2, embed_dim=16))


@pytest.fixture(scope="package")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> ExportedFile:
    """As ``patchmerger export --format onnx`` writes it."""
    out = tmp_path_factory.mktemp("exports") / "tiny.onnx"
    return export(tiny(), out, ExportSettings(), preprocessing=PREPROCESSING, command="patchmerger export tiny")


def nothing_but(folder: Path, *names: str) -> bool:
    """Whether a folder holds these files and nothing else, half-written ones included."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)
