"""The record of a benchmark of deployed models: forms, rows and rounds, on disk when they are done, to go on with."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patchmerger.runs.files import check_out, write_json
from patchmerger.runs.serialisation import to_json
from patchmerger.speed.deployed_forms import FormKey
from patchmerger.speed.record import check_model, unfinished

KIND, SCHEMA = "deployment", 2


def forms_folder(path: Path) -> Path:
    """Where the forms that are files are kept, beside an unfinished record."""
    return path.with_name(f".{path.name}.forms.partial")


class DeploymentRecord:
    """What is done of a benchmark of deployed models, in a JSON file where there is one, after a head.

    An old file that is to be replaced stays until the first round is measured.

    Raises:
        FileExistsError: The file exists, and is finished or has other settings.
        ValueError: ``path`` is a folder, or the file was measured elsewhere.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "kind": KIND, "schema": SCHEMA, **to_json(dict(head)), "finished": False, "models": {}, "peak_rates": None,
            "bandwidth": None, "forms": [], "rows": [], "unfinished": None,
        }  # fmt: skip
        self._replaces = path is not None and path.exists()
        self._is_new = not self._replaces
        if path is not None and path.is_file() and not overwrite:
            self.content, self._replaces = unfinished(path, self.content), False
        else:
            check_out(path, overwrite=overwrite)

    @property
    def measured(self) -> bool:
        """Whether any round is."""
        return bool(self.content["rows"] or self.content["unfinished"])

    def form(self, key: FormKey) -> dict[str, Any] | None:
        """What is known of a form that was made, or that failed where others are measured already."""
        found = next((form for form in self.content["forms"] if form["key"] == asdict(key)), None)
        return None if found is None or (found["error"] and not self.measured) else found

    def add_form(self, form: Mapping[str, Any]) -> None:
        """Add one, in the place of an earlier attempt, and save where it did not fail."""
        plain = to_json(dict(form))
        places = [place for place, old in enumerate(self.content["forms"]) if old["key"] == plain["key"]]
        if places:
            self.content["forms"][places[0]] = plain
        else:
            self.content["forms"].append(plain)
        if not plain["error"]:
            self.save()

    def check_model(self, name: str, fingerprint: str) -> None:
        """As :func:`~patchmerger.speed.record.check_model`, of the models in this record."""
        check_model(self.content, self.path, name, fingerprint)

    def rounds(self, batch_size: int, names: list[str]) -> dict[str, list[list[float]]]:
        """The seconds of each call, by form and round, of an unfinished row."""
        known = self.content["unfinished"]
        if known is None or known["batch_size"] != batch_size:
            return {name: [] for name in names}
        return {name: list(known["rounds"][name]) for name in names}

    def keep_rounds(self, batch_size: int, rounds: Mapping[str, list[list[float]]]) -> None:
        """Save the rounds so far of a row."""
        self.content["unfinished"] = {"batch_size": batch_size, "rounds": to_json(dict(rounds))}
        self.save()

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Add a row, of which all rounds are done, and save."""
        self.content["rows"].append(to_json(dict(row)))
        self.content["unfinished"] = None
        self.save()

    def finish(self) -> None:
        """Nothing is left to do."""
        del self.content["unfinished"]
        self.content["finished"] = True
        self.save()

    def save(self) -> None:
        if self.path is None or (self._replaces and not self.measured):
            return
        write_json(self.path, self.content, new=self._is_new)
        self._is_new = self._replaces = False

    @contextmanager
    def files(self) -> Iterator[Path]:
        """The folder of the forms that are files: a hidden one beside the record, until that is finished.

        A call that cannot work leaves neither behind, nor one that is interrupted before anything is recorded.
        """
        if self.path is None:
            with tempfile.TemporaryDirectory() as passing:
                yield Path(passing)
            return
        folder = forms_folder(self.path)
        began = not self.content["forms"]
        if began:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException as error:
            nothing_saved = self._replaces or self._is_new
            if nothing_saved or (began and not self.measured and isinstance(error, ValueError)):
                shutil.rmtree(folder, ignore_errors=True)
                if not nothing_saved:
                    self.path.unlink(missing_ok=True)
            raise
        if self.content["finished"]:
            shutil.rmtree(folder, ignore_errors=True)
