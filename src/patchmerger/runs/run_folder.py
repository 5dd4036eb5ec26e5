"""A folder that belongs to one run: fixed by its settings, resumed when unfinished, never overwritten."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

SETTINGS_FILE = "settings.json"
RESULTS_FILE = "results.json"
LATER = {"later": True}
"""Metadata of a setting that came later: at its default it is left out, so that older runs can still be resumed."""


class RunFolder:
    """The folder of one run.

    It holds ``settings.json`` once the run has begun and ``results.json`` once it is finished.

    Args:
        path: The folder; :meth:`begin` makes it.
        settings: What fixes the run: anything that JSON can hold, dataclasses and paths included.

    Raises:
        ValueError: The folder belongs to a run with other settings, or holds something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.settings = plain(settings)
        self.fingerprint = fingerprint(settings)
        recorded = path / SETTINGS_FILE
        if recorded.exists():
            self._refuse_other(json.loads(recorded.read_text()))
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"out ({path}) exists and is not the folder of a run: name another one, or move it away")

    def begin(self) -> None:
        """Make the folder, once everything that could refuse the run has been checked."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / SETTINGS_FILE).exists():
            write_json(self.path / SETTINGS_FILE, self.settings)

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of the finished run; ``None`` while it is unfinished."""
        file = self.path / RESULTS_FILE
        return json.loads(file.read_text()) if file.exists() else None

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results, which makes the run a finished one."""
        write_json(self.path / RESULTS_FILE, results)

    def _refuse_other(self, recorded: dict[str, Any]) -> None:
        if recorded == self.settings:
            return
        ours, theirs = flatten(self.settings), flatten(recorded)
        changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        listed = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} asked for" for key in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ValueError(
            f"out ({self.path}) belongs to a run with other settings ({listed}{more}): name another folder, or give "
            "the same settings to resume it"
        )


def default_folder(command: str, name: str, settings: dict[str, Any]) -> Path:
    """``runs/COMMAND-NAME-FINGERPRINT``: another folder for any other settings."""
    slug = "".join(c if c.isalnum() else "-" for c in name.rstrip("/").rsplit("/", 1)[-1]).strip("-").lower()
    return Path("runs") / f"{command}-{slug}-{fingerprint(settings)[:8]}"


def fingerprint(settings: dict[str, Any]) -> str:
    """A hash of the settings, the same in every process."""
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses and tuples become dicts and lists, paths strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        left_out = [f.name for f in fields if f.metadata.get("later") and getattr(value, f.name) == f.default]
        return {f.name: plain(getattr(value, f.name)) for f in fields if f.name not in left_out}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys, as the command line has them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
