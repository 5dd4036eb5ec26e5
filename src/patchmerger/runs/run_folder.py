"""A folder that belongs to one run: fixed by its settings, resumed when unfinished, never overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from patchmerger.runs.files import is_partial, read_json, refuse_broken_link, remove_partials, write_json
from patchmerger.runs.serialisation import from_json, to_json
from patchmerger.runs.text import some_of

S = TypeVar("S")
SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
LOCK_FILE = ".lock"


class RunFolder:
    """The folder of one run, which :meth:`begin` makes.

    It holds ``settings.json``, with the name of their class, once the run has begun, and ``results.json`` once it is
    finished.

    Args:
        path: The folder.
        settings: What fixes the run: a dataclass, or a dict of what JSON can hold, dataclasses and paths included.
        growing: Those settings which, where they alone differ, only add to what there is to do.

    Raises:
        ValueError: The folder belongs to a run with other settings, or holds something else.
        FileExistsError: It is a link to what is not there.
    """

    def __init__(self, path: Path, settings: Any, *, growing: Collection[str] = ()) -> None:
        self.path, self._growing = path, growing
        self.settings: dict[str, Any] = to_json(settings)
        self.fingerprint = fingerprint(settings)
        self.kind = type(settings).__name__
        refuse_broken_link(path, "out")
        if (path / SETTINGS_FILE).exists():
            self._refuse_other(*recorded(path))
        elif path.exists() and (not path.is_dir() or not all(_of_a_beginning(each) for each in path.iterdir())):
            raise ValueError(f"out ({path}) exists and is not the folder of a run: name another one, or move it away")

    def begin(self) -> None:
        """Make the folder, once everything that could refuse the run has been checked."""
        self.path.mkdir(parents=True, exist_ok=True)
        settings, lock = self.path / SETTINGS_FILE, FileLock(self.path / LOCK_FILE)
        while not settings.exists():
            try:
                # Under the lock, for who holds it takes what is half written for that of a killed process.
                with lock.acquire(timeout=0.05):
                    if not settings.exists():
                        write_json(settings, {"type": self.kind, "settings": self.settings})
            except Timeout:
                continue
        self._refuse_other(*recorded(self.path))  # what another process wrote meanwhile

    @contextmanager
    def exclusive(self) -> Iterator[dict[str, Any] | None]:
        """The run of this process alone, once it has begun: another process that is at it is waited for.

        The operating system holds the lock for the process, and gives it back when that ends in whatever way. Of the
        processes of one training on several devices the first holds it for all.

        Yields:
            The results, where another process has finished the run meanwhile; else ``None``.
        """
        if not _is_first_process():
            yield self.results
            return
        lock = FileLock(self.path / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting: another process is at the run in {self.path}", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            remove_partials(self.path)
            yield self.results
        finally:
            lock.release()

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of the finished run, whose ``folder`` is where it is now; ``None`` while it is unfinished."""
        file = self.path / RESULTS_FILE
        if not file.exists():
            return None
        try:
            results: dict[str, Any] = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error}; remove it, and the same command makes it again") from error
        return results | {"folder": str(self.path)} if "folder" in results else results

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the results, which makes the run a finished one; returns them as they will be read back."""
        plain: dict[str, Any] = to_json(results)
        write_json(self.path / RESULTS_FILE, plain)
        return plain

    def _refuse_other(self, kind: str, recorded: dict[str, Any]) -> None:
        if (kind, recorded) == (self.kind, self.settings):
            return
        ours, theirs = {"type": self.kind, **self.settings}, {"type": kind, **recorded}
        nulls = flatten(ours).keys() ^ flatten(theirs).keys()
        listed = differences(ours, theirs) or f"null in one of them, not there in the other: {some_of(sorted(nulls))}"
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        grows = changed <= set(self._growing)
        raise ValueError(
            f"out ({self.path}) belongs to a run with other settings ({listed}): name another folder, or give "
            f"the same settings to resume it{'; to let it grow, name another folder, and this one as reuse' * grows}"
        )


def read_settings(path: Path, kind: type[S]) -> S:
    """The settings of the run in a folder, as the dataclass that they were; errors say what else the folder is."""
    found, settings = recorded(path)
    if found != kind.__name__:
        raise ValueError(f"{path} is the folder of a run with {found}, not with {kind.__name__}")
    try:
        return from_json(kind, settings)
    except ValueError as error:
        raise ValueError(f"{path / SETTINGS_FILE}: {error}") from error


def recorded(path: Path) -> tuple[str, dict[str, Any]]:
    """The type and the settings in the folder of a run."""
    cure = f"name another folder, or move {path} away"
    try:
        content = read_json(path / SETTINGS_FILE)
    except ValueError as error:
        raise ValueError(f"{error}: {cure}") from error
    match content:
        case {"type": str(kind), "settings": dict(settings), **rest} if not rest:
            return kind, settings
    raise ValueError(f"{path / SETTINGS_FILE} was not written by this version of patchmerger: {cure}")


def _of_a_beginning(path: Path) -> bool:
    """Whether a file is what a run that begins has before its settings: another process's, or a killed one's."""
    return path.name == LOCK_FILE or is_partial(path)


def default_folder(command: str, name: str, settings: Any) -> Path:
    """``runs/COMMAND-NAME-FINGERPRINT``: another folder for any other settings."""
    slug = "".join(c if c.isalnum() else "-" for c in name.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()
    return Path("runs") / f"{command}-{slug}-{fingerprint(settings)[:8]}"


def fingerprint(settings: Any) -> str:
    """A hash of the settings, the same in every process, and for 1 and 1.0, which are equal."""
    return hashlib.sha256(json.dumps(_whole(to_json(settings)), sort_keys=True).encode()).hexdigest()


def _whole(value: Any) -> Any:
    """A value of JSON with whole numbers as such."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The first settings that differ, in words; empty where none does."""
    ours, theirs = flatten(ours), flatten(theirs)
    changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return some_of([f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} asked for" for key in changed], between="; ")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, as the command line has them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that train together, by what launched them."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)
