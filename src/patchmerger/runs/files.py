"""Files and folders that appear complete or not at all: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PARTIAL = ".partial"
_FULL = "no space is left on the disk: free some, and give the same command again"


def read_json(path: Path) -> Any:
    """The content of a JSON file; ``ValueError`` with its path where it is not JSON in UTF-8, or cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): it is damaged or cut short") from error


def read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; ``FileNotFoundError`` or ``ValueError`` where it is not so."""
    if not path.is_file():
        raise FileNotFoundError(f"folder ({path.parent}) has no {path.name}")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object: it describes no model")
    return content


def write_json(path: Path, content: Any, *, new: bool = False) -> None:
    """Write ``content`` as JSON that people can read, atomically; ``new`` as for :func:`atomic_file`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", new=new)


def made_once(path: Path, make: Callable[[], Any]) -> Any:
    """The content of a JSON file, which is written with what ``make`` gives where there is none; its folder too."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write ``text`` in UTF-8, atomically; ``new`` as for :func:`atomic_file`."""
    with atomic_file(path, new=new) as partial:
        partial.write_text(text, encoding="utf-8")


def refuse_broken_link(path: Path, name: str) -> None:
    """Refuse a link to what is not there, which seems to be free and is not; messages call it ``name``.

    Raises:
        FileExistsError: So it is.
    """
    if path.is_symlink() and not path.exists():
        raise FileExistsError(
            f"{name} ({path}) is a link to {path.readlink()}, which is not there: remove the link, or take another name"
        )


def check_out(out: Path | None, *, overwrite: bool, name: str = "out") -> None:
    """Refuse a file of results that cannot be written, and make its folder: before anything long begins.

    ``None`` asks for none. Messages call it ``name``.

    Raises:
        ValueError: It is a folder.
        FileExistsError: It exists and ``overwrite`` is false, or it is a link to what is not there.
    """
    if out is None:
        return
    refuse_broken_link(out, name)
    if out.is_dir():
        raise ValueError(f"{name} ({out}) is a folder: name a file in it")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{name} ({out}) exists already: take another name, or set overwrite to true")
    out.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def full_disk_named(path: Path, *, any_write_error: bool = False) -> Iterator[None]:
    """Within it, a full disk raises an ``OSError`` that names ``path``, which is written to, and what to do.

    With ``any_write_error`` nothing but writing is done within it, so that any error with no space left is of that:
    torch and safetensors raise errors of their own.
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
def atomic_file(path: Path, *, new: bool = False) -> Iterator[Path]:
    """A path beside ``path`` to write to; the file takes the place of ``path`` where nothing failed.

    Its folders are made; its mode is what the umask gives, as for any new file. With ``new`` it must not be there, also
    not when all is written: what another process wrote meanwhile stays, and ``FileExistsError`` is raised.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        with full_disk_named(path, any_write_error=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            flush(partial)
            put_file(partial, path, new=new)
    finally:
        partial.unlink(missing_ok=True)


def put_file(written: Path, path: Path, *, new: bool) -> None:
    """Let ``written`` take the place of ``path``, or, where that must be ``new``, have its name if nobody has it."""
    if not new:
        os.replace(written, path)
        return
    try:
        os.link(written, path)  # unlike a rename, it never replaces
    except FileExistsError as error:
        raise _appeared(path) from error
    except OSError:  # a file system without links
        if path.exists():
            raise _appeared(path) from None
        os.replace(written, path)


def _appeared(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} was written by another process meanwhile, and stays: take another name")


def flush(path: Path) -> None:
    """Have the file on the disk before it is renamed: else a crash may leave the new name with nothing in it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(target: Path, *, new: bool = False) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; it takes the place of ``target`` where nothing failed.

    With ``new`` that must be empty or not there, also not when all is written; else ``FileExistsError`` is raised.
    """
    made = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        with full_disk_named(target, any_write_error=True):
            made.mkdir(parents=True)
            yield made
            for written in made.rglob("*"):
                if written.is_file():
                    flush(written)
            _put_in_place(made, target, new=new)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Whether a file or folder is a half-written one, by its name."""
    return path.name.startswith(".") and path.suffix == _PARTIAL


def remove_partials(folder: Path) -> None:
    """Remove what a killed process had half written in ``folder`` and below it, while nobody else writes there."""
    for partial in [*folder.rglob(f".*{_PARTIAL}")]:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _put_in_place(made: Path, target: Path, *, new: bool) -> None:
    if new or not target.exists():
        try:
            made.rename(target)  # which replaces an empty folder, and nothing else
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise _appeared(target) from error
            raise
        return
    old = made.with_suffix(".old")
    target.rename(old)
    try:
        made.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
