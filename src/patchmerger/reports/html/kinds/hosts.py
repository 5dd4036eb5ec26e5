"""``patchmerger hosts``: which architectures take a merger."""

from __future__ import annotations

from collections import Counter

from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Figure, Section, Table

_STATUSES = ("merged", "refused", "not buildable", "failed")


def describe(section: Section, results: Results) -> None:
    """Fill a section with a census of architectures."""
    section.title = "Architectures that take a merger"
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.tables += section.attempt("table", lambda: [_libraries(results)], [])
    section.tables += section.attempt("table of families", lambda: [_families(results)], [])
    section.tables += section.attempt("table of reasons", lambda: [_reasons(results)], [])
    section.details["Settings"] = {"architectures": "with the defaults of their libraries, without weights"}
    for library in results.get("missing") or ():
        section.missing.append(f"{library} (it was not installed)")


def _total(results: Results, status: str) -> int:
    return sum(counts.get(status, 0) for counts in results["counts"].values())


def _verdict(results: Results) -> str:
    return (
        f"Of {len(results['findings']):,} architectures, **{_total(results, 'merged'):,} take a merger**; "
        f"{_total(results, 'refused'):,} are refused with a reason, and {_total(results, 'failed'):,} failed."
    )


def _figures(results: Results) -> list[Figure]:
    return [Figure(f"{_total(results, status):,}", status) for status in _STATUSES if _total(results, status)]


def _libraries(results: Results) -> Table:
    rows = [
        [Cell(f"{library} {results['versions'][library]}"),
         *(Cell(f"{counts.get(status, 0):,}", counts.get(status, 0)) for status in _STATUSES)]
        for library, counts in results["counts"].items()
    ]  # fmt: skip
    return Table("By library", ["library", *_STATUSES], rows)


def _families(results: Results) -> Table:
    found = Counter((f["family"], f["library"]) for f in results["findings"] if f["status"] == "merged")
    rows = [[Cell(family), Cell(library), Cell(f"{count:,}", count)] for (family, library), count in found.items()]
    return Table("Families that take one", ["family", "library", "architectures"], rows, folded=True)


def _reasons(results: Results) -> Table:
    found = Counter(f["why"] for f in results["findings"] if f["status"] == "refused")
    rows = []
    for number, count in found.most_common():
        why = results["reasons"][number]
        rows.append([Cell(why["reason"]), Cell(why.get("way_out") or "–"), Cell(f"{count:,}", count)])
    return Table("Why the others are refused", ["reason", "what would do", "architectures"], rows, folded=True)
