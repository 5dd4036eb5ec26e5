"""``patchmerger export``: a model as a file of another runtime, checked to be the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.exports.settings import SUFFIXES, ExportSettings
from patchmerger.runs.narrowing import narrowed


@dataclass(frozen=True)
class _Model:
    """What is exported.

    Args:
        model: A folder of a saved model or run, a safetensors file, a timm architecture with weights, or a name on
            the Hub.
    """

    model: str


@dataclass(frozen=True)
class Command(ExportSettings, _Model):
    """Export a model, merged or plain, to ONNX, OpenVINO or torch, and check that the file gives the same outputs.

    The file holds what a user needs to run it: classes, normalisation, crop, image size, mergers. It appears under its
    name only if its logits are those of the eager model within the tolerance: on held-out images of --data, or on
    noise where none are given.

    Args:
        data: Images, labelled or not, to compare on and to calibrate int8 on.
        architecture: For a safetensors file, timm's name of the architecture.
        preprocessing: How images are prepared, in place of what is known of the model.
        out: The file to write, which must be named: .onnx, .pt2, or for openvino a folder. Beside it, or in the folder,
            stands a JSON record of the comparison, for patchmerger report.
        overwrite: Replace an export that is there.
    """

    data: DataSettings | None = None
    architecture: str | None = None
    preprocessing: Preprocessing | None = None
    out: Path | None = None
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Export, and show how near the file is to the model."""
        if self.out is None:
            raise ValueError(f"out is missing: name the file to write, such as --out model{SUFFIXES[self.format]}")
        self.check_name(self.out)

        from patchmerger.exports.exporting import export
        from patchmerger.reports.export import show
        from patchmerger.runs.files import read_json

        result = export(
            self.model, self.out, narrowed(self, ExportSettings), data=self.data, architecture=self.architecture,
            preprocessing=self.preprocessing, overwrite=self.overwrite, command=command,
        )  # fmt: skip
        show(read_json(result.record), str(result.path))
        return 0
