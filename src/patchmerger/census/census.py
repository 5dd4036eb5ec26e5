"""What a census found of each architecture: put together by family and by reason, written and read. Without torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from patchmerger.mechanism.options import Positions, RefusalKind
from patchmerger.runs.files import read_json

Library: TypeAlias = Literal["timm", "transformers", "torchvision"]
LIBRARIES: tuple[Library, ...] = get_args(Library)
Libraries: TypeAlias = Literal["all", Library]

Status: TypeAlias = Literal["merged", "refused", "not buildable", "failed"]

# In transformers: what follows the name of a model in the name of a class.
_MODEL_OF_CLASS = re.compile(r"(Vision|Image)?(Model(WithProjection)?|For\w+Classification(WithTeacher)?)$")

# What many findings have in common; it is written once.
_WHY = ("kind", "reason", "way_out")


@dataclass(frozen=True)
class Finding:
    """What was found of one architecture.

    Attributes:
        library: The library that makes it.
        name: Its name there.
        family: Its class.
        status: ``"merged"``: the blocks after the merger were seen to get M + prefix tokens. ``"refused"``: by
            ``UnsupportedModelError``. ``"not buildable"``: its library does not make it from its defaults.
            ``"failed"``: anything else.
        kind: The class of the reason why it is refused, with ``positions`` only by default.
        reason: Why it is refused, not buildable or failed.
        way_out: What would do instead, where it is refused.
        positions: What becomes of positions in the blocks after a merger.
        blocks: Number of blocks.
        prefix: Tokens before the patches.
        patches: Patches of an image, N.
    """

    library: str
    name: str
    family: str
    status: Status
    kind: RefusalKind | None = None
    reason: str | None = None
    way_out: str | None = None
    positions: Positions | None = None
    blocks: int | None = None
    prefix: int | None = None
    patches: int | None = None


@dataclass(frozen=True)
class Family:
    """Architectures that take a merger alike: of one class in timm and torchvision, of one model in transformers.

    In transformers ``name`` is what the names of their classes begin with. ``by_default`` says whether ``insert`` takes
    them without being told about positions.
    """

    library: str
    name: str
    positions: Positions | None
    by_default: bool
    members: tuple[Finding, ...]

    @property
    def prefixes(self) -> list[int]:
        """Numbers of tokens before the patches that were seen."""
        return sorted({finding.prefix for finding in self.members if finding.prefix is not None})


@dataclass(frozen=True)
class Refused:
    """Architectures that are refused for one reason."""

    kind: str
    reason: str
    way_out: str
    members: tuple[Finding, ...]

    @property
    def classes(self) -> dict[str, list[str]]:
        """The classes of the members, by library."""
        by_library: dict[str, list[str]] = {}
        for finding in self.members:
            names = by_library.setdefault(finding.library, [])
            if finding.family not in names:
                names.append(finding.family)
        return {library: sorted(names, key=str.lower) for library, names in by_library.items()}


@dataclass(frozen=True)
class Census:
    """What was found.

    Attributes:
        findings: One for each architecture.
        versions: Of Python and the libraries.
        missing: Libraries that are not installed, whose architectures were left out.
        command: The command that finds it again.
    """

    findings: tuple[Finding, ...]
    versions: dict[str, str]
    missing: tuple[Library, ...] = ()
    command: str = ""

    def matching(self, library: Libraries, filter: str) -> Census:
        """The part of it for one library, or "all", and the names that ``filter`` lets through."""
        found = (one for one in self.findings if library in ("all", one.library) and matches(one.name, filter))
        return replace(self, findings=tuple(found))

    def of_status(self, status: str) -> list[Finding]:
        """The findings with this status."""
        return [finding for finding in self.findings if finding.status == status]

    @property
    def failures(self) -> list[Finding]:
        """Those that were neither merged nor refused, though they could be built."""
        return self.of_status("failed")

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Architectures of each library by status."""
        counts: dict[str, Counter[str]] = {}
        for finding in self.findings:
            counts.setdefault(finding.library, Counter())[finding.status] += 1
        return {library: dict(of_library) for library, of_library in counts.items()}

    @property
    def families(self) -> list[Family]:
        """All that was merged, by family, those with most architectures first in each library."""
        groups: dict[tuple[str, str, Positions | None, bool], list[Finding]] = {}
        for one in self.of_status("merged"):
            name = _MODEL_OF_CLASS.sub("", one.family) if one.library == "transformers" else one.family
            groups.setdefault((one.library, name, one.positions, one.kind is None), []).append(one)
        families = [Family(*key, tuple(members)) for key, members in groups.items()]
        libraries = list(self.counts)

        def place(family: Family) -> tuple[int, int, str]:
            # Those of transformers by name alone: how many there are tells only how many heads.
            size = 0 if family.library == "transformers" else len(family.members)
            return libraries.index(family.library), -size, family.name.lower()

        return sorted(families, key=place)

    @property
    def refused(self) -> list[Refused]:
        """All that was refused, by reason, those with most architectures first in each kind."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for one in self.of_status("refused"):
            groups.setdefault((one.kind or "", one.reason or "", one.way_out or ""), []).append(one)
        refused = [Refused(*key, tuple(members)) for key, members in groups.items()]
        sizes: Counter[str] = Counter()
        for group in refused:
            sizes[group.kind] += len(group.members)
        return sorted(refused, key=lambda r: (-sizes[r.kind], r.kind, -len(r.members), r.reason))

    def as_json(self) -> str:
        """JSON with one line for each finding and each reason; what does not apply is left out."""
        head = {"command": self.command, "versions": self.versions, "missing": self.missing, "counts": self.counts}
        reasons: dict[str, int] = {}
        findings = []
        for one in self.findings:
            present = {field.name: getattr(one, field.name) for field in fields(one)}
            present = {name: value for name, value in present.items() if value is not None}
            why = {name: present.pop(name) for name in _WHY if name in present}
            if why:
                present["why"] = reasons.setdefault(_line(why), len(reasons))
            findings.append(_line(present))
        lines = [f' "{name}": {_line(value)}' for name, value in head.items()]
        for name, listed in (("reasons", list(reasons)), ("findings", findings)):
            lines.append(f' "{name}": [\n  ' + ",\n  ".join(listed) + "\n ]")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def matches(name: str, filter: str) -> bool:
    """Whether ``filter`` (``"vit_*"``, say) lets an architecture of this name through."""
    return fnmatchcase(name.lower(), filter.lower())


def census_of(content: Mapping[str, Any]) -> Census:
    """The census in the content of a file that ``patchmerger hosts --out`` wrote.

    Raises:
        KeyError: It is of another kind; or TypeError, IndexError.
    """
    reasons = content["reasons"]
    findings = [{**one, **(reasons[one["why"]] if "why" in one else {})} for one in content["findings"]]
    found = tuple(Finding(**{name: value for name, value in one.items() if name != "why"}) for one in findings)
    return Census(found, content["versions"], tuple(content["missing"]), content["command"])


def read_census(path: Path) -> Census:
    """Read a census from a file that ``patchmerger hosts --out`` wrote; ``ValueError`` for any other."""
    try:
        return census_of(read_json(path))
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no census: `patchmerger hosts --out FILE` writes one") from error


def shipped_census() -> Census:
    """The census that comes with this version of patchmerger: all three libraries, in the versions that it names."""
    return read_census(Path(__file__).with_name("hosts.json"))
