"""`make test-oldest` runs on the versions that pyproject.toml claims to be enough: the two cannot drift apart."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def lower_bounds() -> dict[str, Version]:
    """What users install: all but the tools of developers and of the site, each package with its one lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        lines += requirements if extra not in ("dev", "docs") else []
    return dict(read(line, ">=") for line in lines)


def pins() -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "tests" / "oldest.txt").read_text().splitlines())
    return dict(read(line, "==") for line in lines if line)


def read(line: str, operator: str) -> tuple[str, Version]:
    requirement = Requirement(line)
    # One bound, and nothing else but single versions that are broken.
    (specifier,) = [each for each in requirement.specifier if each.operator != "!="]
    assert specifier.operator == operator, line
    return canonicalize_name(requirement.name), Version(specifier.version)  # 2.8 and 2.8.0 are the same


def test_the_oldest_versions_are_the_lower_bounds():
    assert pins() == lower_bounds()
