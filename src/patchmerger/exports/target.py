"""Where an export is written, complete or not at all, and the record beside it for ``patchmerger report``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchmerger.exports.metadata import ExportInfo
from patchmerger.exports.parity import Parity
from patchmerger.exports.runtimes import BIN_NAME, XML_NAME
from patchmerger.exports.settings import ExportSettings
from patchmerger.runs.environment import environment, versions_of
from patchmerger.runs.files import atomic_folder, flush, full_disk_named, put_file, read_json, refuse_broken_link
from patchmerger.runs.serialisation import to_json

KIND, RECORD_SCHEMA = "export", 1
RECORD_NAME = "export.json"
"""The record in an OpenVINO folder; beside a file its own name with ``.json`` behind it."""

_CURE = "take another name, or set overwrite to true"
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


def check_target(target: Path, settings: ExportSettings, *, overwrite: bool) -> None:
    """Refuse to replace anything but an export, and that only when asked.

    Raises:
        ValueError: The name says another format.
        FileExistsError: Something is there, or a link to what is not.
    """
    settings.check_name(target)
    refuse_broken_link(target, "out")
    record = record_of(target, settings)
    if not settings.is_folder and record.exists():
        if not is_record(record):
            raise FileExistsError(f"out ({target}): its record would replace {record}: take another name")
        if not overwrite:
            raise FileExistsError(f"out ({target}) has its record ({record.name}) already: {_CURE}")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"out ({target}) exists already: {_CURE}")
    if not settings.is_folder:
        if target.is_dir():
            raise FileExistsError(f"out ({target}) is a folder: take another name")
        if not record.exists():
            raise FileExistsError(
                f"out ({target}) is no export, for its record ({record.name}) is not beside it: overwrite replaces "
                "exports alone; take another name, or delete it"
            )
        return
    if not target.is_dir():
        raise FileExistsError(
            f"out ({target}) is a file, and format {settings.format!r} is a folder: take another name"
        )
    if others := sorted({file.name for file in target.iterdir()} - {XML_NAME, BIN_NAME, RECORD_NAME}):
        raise FileExistsError(
            f"out ({target}) holds more than an export ({', '.join(others[:3])}), which overwrite would delete: take "
            "another name"
        )


@contextmanager
def in_place(target: Path, settings: ExportSettings, *, new: bool) -> Iterator[Path]:
    """A path to write to, of the same ending as ``target``, which it becomes where nothing failed.

    The record is written where :func:`record_of` says. Of a file, an old record goes first and the new one comes last:
    a process that is killed between them leaves a file without a record, and never one with that of another. Where it
    is to be ``new``, what another process wrote there meanwhile stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if settings.is_folder:
        with atomic_folder(target, new=new) as folder:
            yield folder
        return
    with (
        full_disk_named(target, any_write_error=True),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".partial", dir=target.parent) as partial,
    ):
        path = Path(partial) / target.name
        yield path
        record = record_of(path, settings)
        for written in (path, record):
            flush(written)
        if not new:
            record_of(target, settings).unlink(missing_ok=True)
        put_file(path, target, new=new)
        os.replace(record, record_of(target, settings))
