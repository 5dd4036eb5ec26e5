"""The file or folder of an export: what it may replace, and that it appears complete or not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchmerger.exports.record import RECORD_NAME, is_record, record_of
from patchmerger.exports.runtimes import BIN_NAME, XML_NAME
from patchmerger.exports.settings import ExportSettings
from patchmerger.runs.files import atomic_folder, flush, full_disk_named, put_file

_CURE = "take another name, or set overwrite to true"


def check_target(target: Path, settings: ExportSettings, *, overwrite: bool) -> None:
    """Refuse to replace anything but an export, and that only when asked.

    Raises:
        ValueError: The name says another format.
        FileExistsError: Something is there.
    """
    settings.check_name(target)
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
