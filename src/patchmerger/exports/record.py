"""The record beside an exported file, for ``patchmerger report``: what was asked for, how near it is to its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchmerger.exports.metadata import ExportInfo
from patchmerger.exports.parity import Parity
from patchmerger.exports.settings import ExportSettings
from patchmerger.runs.environment import environment, versions_of
from patchmerger.runs.files import read_json
from patchmerger.runs.serialisation import to_json

KIND, RECORD_SCHEMA = "export", 1
RECORD_NAME = "export.json"
"""The record in an OpenVINO folder; beside a file its own name with ``.json`` behind it."""

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


def record_of(path: Path, settings: ExportSettings) -> Path:
    """Where the record is: ``vit.onnx.json`` beside ``vit.onnx``, ``export.json`` in an OpenVINO folder."""
    return path / RECORD_NAME if settings.is_folder else path.with_name(f"{path.name}.json")


def make_record(
    target: Path,
    size: int,
    info: ExportInfo,
    parity: Parity,
    settings: ExportSettings,
    *,
    runtime: str,
    command: str | None,
) -> dict[str, Any]:
    """The content of the record, with the name of ``target`` alone; ``runtime`` ran the file for the comparison."""
    max_difference, min_agreement = settings.tolerance
    content: dict[str, Any] = to_json({
        "kind": KIND, "schema": RECORD_SCHEMA, "command": command, "file": target.name, "size": size,
        "info": asdict(info), "parity": {**asdict(parity), "relative": parity.relative},
        "tolerance": {"max_difference": max_difference, "min_agreement": min_agreement},
        "settings": asdict(settings), "runtime": runtime,
        "environment": {**environment("cpu"), **versions_of(*_LIBRARIES)},
    })  # fmt: skip
    return content


def is_record(path: Path) -> bool:
    """Whether a file is the record of an export."""
    try:
        found = read_json(path)
    except (ValueError, OSError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND
