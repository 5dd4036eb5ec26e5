"""Files and folders that appear complete or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FULL = "no space is left on the disk: make room, and give the same command again"


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON in UTF-8, or cut short.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it is damaged or cut short") from error


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON that people can read, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def full_disk_named(path: Path, *, any_write_error: bool = False) -> Iterator[None]:
    """Within it, a full disk raises an ``OSError`` that names ``path`` and what to do.

    Args:
        path: The file or folder that is written to.
        any_write_error: Nothing but writing is done within it, so that any error with no space left is of that: torch
            and safetensors raise errors of their own.
    """
    try:
        yield
    except Exception as error:
        named = isinstance(error, OSError) and error.strerror == _FULL
        if not named and (_says_full(error) or (any_write_error and _is_full(path))):
            raise OSError(errno.ENOSPC, _FULL, str(path)) from error
        raise


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_full(path: Path) -> bool:
    there = next((folder for folder in path.parents if folder.exists()), Path("/"))
    return shutil.disk_usage(there).free < 2**16


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; the file takes the place of ``path`` where nothing failed.

    Its mode is what the umask gives, as for any new file.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with full_disk_named(path, any_write_error=True):
            yield partial
            flush(partial)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the file on the disk before it is renamed: else a crash may leave the new name with nothing in it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; it takes the place of ``target`` where nothing failed."""
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with full_disk_named(target, any_write_error=True):
            new.mkdir(parents=True)
            yield new
            for written in new.rglob("*"):
                if written.is_file():
                    flush(written)
            _put_in_place(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Remove what a killed process had half written in ``folder`` and below it, while nobody else writes there."""
    for partial in [*folder.rglob(".*.partial")]:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _put_in_place(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
