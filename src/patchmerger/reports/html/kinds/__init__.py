"""The kinds of results that a report shows: how each is recognised, and the section that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from patchmerger.reports.html.kinds import (
    accelerate,
    accelerate_study,
    bench,
    common,
    compare,
    demo,
    deployment,
    export,
    fewshot,
    fit,
    hosts,
    patterns,
    place_study,
    show,
    sweep,
    transfer,
)
from patchmerger.reports.html.parts import Section
from patchmerger.reports.html.reading import Source


@dataclass(frozen=True)
class Kind:
    """Results of one command.

    Attributes:
        command: Its name.
        recognises: Whether results are its.
        describe: Fills a section with them.
    """

    command: str
    recognises: Callable[[Mapping[str, Any]], bool]
    describe: Callable[[Section, Mapping[str, Any]], None]


def _study(name: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda results: results.get("study") == name


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda results: "study" not in results and all(name in results for name in names)


KINDS = (
    Kind("compare", _study("compare"), compare.describe),
    Kind("sweep", _study("sweep"), sweep.describe),
    Kind("transfer", _study("transfer"), transfer.describe),
    Kind("accelerate-study", _study("accelerate"), accelerate_study.describe),
    Kind("place-study", _study("place"), place_study.describe),
    Kind("patterns", _study("patterns"), patterns.describe),
    Kind("accelerate", _has("placement", "evaluation", "recovery"), accelerate.describe),
    Kind("demo", _has("placement", "models", "agreement"), demo.describe),
    Kind("bench", _has("schema", "rows", "forms"), deployment.describe),
    Kind("bench", _has("schema", "rows"), bench.describe),
    Kind("fit", _has("test_metric", "history"), fit.describe),
    Kind("export", _has("parity", "info"), export.describe),
    Kind("fewshot", _has("results", "draws", "strengths"), fewshot.describe),
    Kind("hosts", _has("findings", "counts"), hosts.describe),
)
SHOW = "show"


def section_of(source: Source) -> Section | None:
    """The section that is made of some results; ``None`` where they are of no known kind."""
    if source.results.get("study") == SHOW:
        section = Section(SHOW, str(source.path))
        show.describe(section, source.results, source.path)
    else:
        kind = next((kind for kind in KINDS if kind.recognises(source.results)), None)
        if kind is None:
            return None
        section = Section(kind.command, str(source.path))
        kind.describe(section, source.results)
    common.add_details(section, source.results)
    return section
