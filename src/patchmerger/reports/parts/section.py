"""The section of a report on the results of one command: its parts, and what they lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from patchmerger.reports.parts.charts import Chart
from patchmerger.reports.parts.diagrams import Diagram
from patchmerger.reports.parts.figures import Figure, Picture
from patchmerger.reports.parts.tables import Table
from patchmerger.runs.run_folder import flatten

P = TypeVar("P")
Results = Mapping[str, Any]

_LACKING = (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError, StopIteration)
_ENVIRONMENT = {
    "device_name": "device", "device": "kind of device", "cpu_capability": "vector instructions",
    "cpu_count": "CPUs at hand", "threads": "threads", "load_average": "load of the machine", "platform": "platform",
    "python": "python", "torch": "torch", "timm": "timm", "cuda": "CUDA", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "openvino": "openvino", "nncf": "nncf",
}  # fmt: skip


@dataclass
class Section:
    """What a report says of the results of one command (its ``kind``), from one folder or file.

    The verdict is one sentence with its numbers; ``**bold**`` where it matters. Details, such as settings and versions,
    are folded away: by title, then by name. What is ``missing`` comes with the reason.
    """

    kind: str
    origin: str
    title: str = ""
    verdict: str = ""
    remarks: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    diagrams: list[Diagram] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    details: dict[str, dict[str, str]] = field(default_factory=dict)
    command: str | None = None
    missing: list[str] = field(default_factory=list)

    def attempt(self, what: str, make: Callable[[], P], default: P) -> P:
        """What ``make`` gives; where the results lack what it needs, ``default``, and ``what`` is named as missing."""
        try:
            return make()
        except _LACKING as error:
            self.missing.append(f"{what} ({_reason(error)})")
            return default

    def add(self, parts: list[P], what: str, make: Callable[[], list[P] | P | None]) -> None:
        """Add to ``parts`` what ``make`` gives: some, one, or nothing; what the results lack is named as missing."""
        made = self.attempt(what, make, None)
        parts += made if isinstance(made, list) else [made] if made else []

    def add_details(self, results: Results) -> None:
        """Settings, versions, device and command, to be folded away."""
        settings, environment = results.get("settings"), results.get("environment")
        if isinstance(settings, Mapping):
            self.details["Settings"] = {key: _written(value) for key, value in flatten(dict(settings)).items()}
        elif "Settings" not in self.details:
            self.missing.append("settings (the results have none)")
        if isinstance(environment, Mapping):
            known = {name: environment.get(key) for key, name in _ENVIRONMENT.items()}
            self.details["Device and versions"] = {
                name: _written(value) for name, value in known.items() if value is not None
            }
        elif isinstance(versions := results.get("versions"), Mapping):
            self.details["Versions"] = {name: _written(version) for name, version in versions.items()}
        else:
            self.missing.append("device and versions (the results have none)")
        self.command = results.get("command")
        if self.command is None:
            self.missing.append("the command line (the results have none: they were made in Python)")


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"the results have no {error.args[0]!r}"
    if isinstance(error, StopIteration):
        return "the results do not have it"
    return "the results are of another form" + (f": {error}" if isinstance(error, ValueError) and str(error) else "")


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
