"""The record of a benchmark: its rows, on disk after each of them, to go on with after an interrupt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchmerger.runs.files import read_json, write_json
from patchmerger.runs.run_folder import differences, flatten
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.text import some_of
from patchmerger.speed.settings import Compile, Precision, compile_name

SCHEMA = 3
WAY_OUT = "take another name, or set overwrite to true"
_VARIES = ("load_average", "platform")
"""What of the environment may change between two halves of a measurement."""


@dataclass(frozen=True)
class RowKey:
    """What one row measures: a model, by its name or its folder, on a device, in one way."""

    model: str
    device: str
    precision: Precision
    compile: Compile
    training: bool
    batch_size: int

    def __str__(self) -> str:
        what = "training step" if self.training else "inference"
        compiled = f", {compile_name(self.compile)}" if self.compile else ""
        return f"{self.model} on {self.device}, {what}, batch of {self.batch_size}, {self.precision}{compiled}"


class Record:
    """Rows of a benchmark, in a JSON file where there is one, after a head: ``command``, ``settings``, ``environment``.

    Raises:
        FileExistsError: The file exists, and is finished or has other settings.
        ValueError: ``path`` is a folder, or the file is of another kind or was measured elsewhere.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "schema": SCHEMA, **to_json(dict(head)), "finished": False, "models": {}, "rows": [], "profiles": []
        }  # fmt: skip
        if path is None:
            return
        if path.is_dir():
            raise ValueError(f"out ({path}) is a folder: name a file in it")
        if path.exists() and not overwrite:
            self.content = unfinished(path, self.content)

    def find(self, key: RowKey, kind: str = "rows") -> dict[str, Any] | None:
        """The row that was measured whole (or that failed) under this key."""
        wanted = asdict(key)
        return next((row for row in self.content[kind] if row["key"] == wanted and not row["interrupted"]), None)

    def check_model(self, name: str, fingerprint: str) -> None:
        """As :func:`check_model`, of the models in this record."""
        check_model(self.content, self.path, name, fingerprint)

    def add(self, key: RowKey, row: Mapping[str, Any], kind: str = "rows", *, interrupted: bool = False) -> None:
        """Add a row, in the place of one that was interrupted, and save."""
        wanted = asdict(key)
        rows = [row for row in self.content[kind] if row["key"] != wanted]
        self.content[kind] = [*rows, {"key": wanted, "interrupted": interrupted, **to_json(dict(row))}]
        self.save()

    def finish(self) -> None:
        self.content["finished"] = True
        self.save()

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.content)


def check_model(content: dict[str, Any], path: Path | None, name: str, fingerprint: str) -> None:
    """Note the fingerprint of a model, by its name, and refuse one that has changed since results were begun with it.

    Raises:
        ValueError: It has.
    """
    if content.setdefault("models", {}).setdefault(name, fingerprint) != fingerprint:
        raise ValueError(f"out ({path}) is unfinished, and models ({name}) has changed since it was begun: {WAY_OUT}")


def unfinished(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The unfinished results in the file, if they are of the same kind and settings and were measured here.

    Raises:
        FileExistsError: They are not unfinished, or of another kind, or have other settings.
        ValueError: They were measured elsewhere, or with other libraries.
    """
    try:
        found: dict[str, Any] = read_json(path)
    except ValueError as error:
        raise FileExistsError(f"out ({path}) exists already and is no benchmark: {WAY_OUT}") from error
    same = isinstance(found, dict) and all(found.get(key) == wanted.get(key) for key in ("kind", "schema"))
    if not same or found.get("finished") is not False:
        raise FileExistsError(f"out ({path}) exists already: {WAY_OUT}")
    if listed := differences(wanted["settings"], found["settings"]):
        raise FileExistsError(f"out ({path}) is unfinished and has other settings ({listed}): {WAY_OUT}")
    here, there = flatten(wanted["environment"]), flatten(found["environment"])
    moved = [
        f"{key}: {there.get(key)} there, {value} here"
        for key, value in here.items()
        if key not in _VARIES and there.get(key) != value
    ]
    if moved:
        listed = some_of(moved, between="; ")
        raise ValueError(f"out ({path}) is unfinished and was measured elsewhere ({listed}): {WAY_OUT}")
    return found
