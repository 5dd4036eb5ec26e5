"""Where an export goes: what may be replaced there, and how the file or folder appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchmerger.exports.runtimes import BIN_NAME, XML_NAME
from patchmerger.exports.settings import SUFFIXES, ExportSettings
from patchmerger.runs.files import atomic_file, atomic_folder


def check_target(target: Path, settings: ExportSettings, *, overwrite: bool) -> None:
    """Refuse to replace anything but an export, and that only when asked.

    Raises:
        ValueError: The name says another format.
        FileExistsError: Something is there.
    """
    settings.check_name(target)
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"out ({target}) exists already: take another name, or set overwrite to true")
    if SUFFIXES[settings.format]:
        if target.is_dir():
            raise FileExistsError(f"out ({target}) is a folder: take another name")
        return
    if not target.is_dir():
        raise FileExistsError(
            f"out ({target}) is a file, and format {settings.format!r} is a folder: take another name"
        )
    if others := sorted({file.name for file in target.iterdir()} - {XML_NAME, BIN_NAME}):
        raise FileExistsError(
            f"out ({target}) holds more than an export ({', '.join(others[:3])}), which overwrite would delete: take "
            "another name"
        )


@contextmanager
def in_place(target: Path, settings: ExportSettings) -> Iterator[Path]:
    """A path to write to, of the same ending as ``target``, which it becomes where nothing failed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not SUFFIXES[settings.format]:
        with atomic_folder(target) as folder:
            yield folder
        return
    with (
        atomic_file(target) as partial,
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".partial", dir=target.parent) as folder,
    ):
        path = Path(folder) / target.name
        yield path
        os.replace(path, partial)
