"""The kinds of results that a report shows: how each is recognised, and the section that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from patchmerger.reports import (
    accelerate,
    accelerate_study,
    bench,
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
from patchmerger.reports.html.reading import Source
from patchmerger.reports.parts import numbers
from patchmerger.reports.parts.section import Section


@dataclass(frozen=True)
class Kind:
    """Results of one command, and what fills a section with them.

    Results say of which ``study`` they are; those that do not are known by the ``names`` in them.
    """

    command: str
    describe: Callable[[Section, Mapping[str, Any]], None]
    names: tuple[str, ...] = ()
    study: str | None = None

    def recognises(self, results: Mapping[str, Any]) -> bool:
        """Whether results are of this kind."""
        return results.get("study") == self.study and all(name in results for name in self.names)


KINDS = (
    Kind("compare", compare.describe, study="compare"),
    Kind("sweep", sweep.describe, study="sweep"),
    Kind("transfer", transfer.describe, study="transfer"),
    Kind("accelerate-study", accelerate_study.describe, study="accelerate"),
    Kind("place-study", place_study.describe, study="place"),
    Kind("patterns", patterns.describe, study="patterns"),
    Kind("show", show.describe, study="show"),
    Kind("accelerate", accelerate.describe, ("placement", "evaluation", "recovery")),
    Kind("demo", demo.describe, ("placement", "models", "agreement")),
    Kind("bench", deployment.describe, ("schema", "rows", "forms")),
    Kind("bench", bench.describe, ("schema", "rows")),
    Kind("fit", fit.describe, ("test_metric", "history")),
    Kind("export", export.describe, ("parity", "info")),
    Kind("fewshot", fewshot.describe, ("results", "draws", "strengths")),
    Kind("hosts", hosts.describe, ("findings", "counts")),
)


def section_of(source: Source) -> Section | None:
    """The section that is made of some results; ``None`` where they are of no known kind."""
    kind = next((kind for kind in KINDS if kind.recognises(source.results)), None)
    if kind is None:
        return None
    section = Section(kind.command, str(source.path))
    kind.describe(section, source.results)
    section.add(section.remarks, "what was taken over", lambda: numbers.taken_over_text(source.results))
    section.add_details(source.results)
    return section
