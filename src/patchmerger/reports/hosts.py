"""What ``patchmerger hosts`` shows: which architectures take a merger, one by one, or in tables of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from rich.console import Console
from rich.markup import escape

from patchmerger.census.census import Census, Finding, Status, census_of
from patchmerger.reports.parts import cells, figures
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table

# Up to so many architectures a census shows each by itself.
_FEW = 20


def show(census: Census, *, names: bool = False, again: str | None = None) -> int:
    """Print a census; the exit status is 1 where something failed.

    Args:
        census: What was found.
        names: Name every architecture below the tables of many.
        again: The option that finds it anew, for a census that was taken earlier.
    """
    console, few = Console(highlight=False), len(census.findings) <= _FEW
    if not few:
        for table in tables(census):
            print_table(console, table, wrap=True)
        if names:
            _show_names(console, census)
    for finding in census.findings if few else (*census.of_status("not buildable"), *census.failures):
        console.print(_answer(finding), soft_wrap=True)
    print_notes(console, *(f"{library} is not installed: its models were left out" for library in census.missing))
    if again is not None:
        versions = ", ".join(f"{library} {census.versions[library]}" for library in census.counts)
        print_notes(console, f"As found with {versions}; {again} tries the installed versions")
    return 1 if census.failures else 0


def tables(census: Census) -> list[Table]:
    """How many by library, by family that takes one, and by the reason why others are refused."""
    statuses = get_args(Status)
    libraries = [
        [Cell(library), *(cells.number(counts.get(status, 0), ",.0f") for status in statuses)]
        for library, counts in census.counts.items()
    ]
    families = [
        [*map(Cell, (family.name, family.library, ", ".join(map(str, family.prefixes)), family.positions or "–")),
         cells.number(len(family.members), ",.0f")]
        for family in census.families
    ]  # fmt: skip
    reasons = [
        [*map(Cell, (group.kind, group.reason, group.way_out or "–")), cells.number(len(group.members), ",.0f")]
        for group in census.refused
    ]
    found = [
        Table("By library", ["library", *statuses], libraries),
        Table("Families that take one", ["family", "library", "prefix", "positions", "number"], families, folded=True),
        Table("Why others are refused", ["kind", "reason", "what would do", "number"], reasons, folded=True),
    ]
    return [table for table in found if table.rows]


def _show_names(console: Console, census: Census) -> None:
    groups: list[tuple[str, Sequence[Finding]]] = [(f"{f.name} ({f.library})", f.members) for f in census.families]
    groups += [(f"refused, {group.reason}", group.members) for group in census.refused]
    for title, members in groups:
        listed = ", ".join(finding.name for finding in members)
        console.print(f"[bold]{escape(title)}[/bold]: {escape(listed)}", soft_wrap=True)


def _answer(finding: Finding) -> str:
    """One architecture in one line."""
    start = f"{escape(finding.name)} ({finding.library}): [bold]{finding.status}[/bold]"
    if finding.status == "merged":
        asked = "" if finding.kind is None else " (to be asked for)"
        positions = f", positions={finding.positions!r}{asked}" if finding.positions else ""
        tokens = f"{finding.prefix} + {finding.patches} tokens become {finding.prefix} + M"
        return f"{start}; {finding.family}, {finding.blocks} blocks, {tokens}{positions}"
    kind = f" ({finding.kind})" if finding.kind else ""
    way_out = f"; {finding.way_out}" if finding.way_out else ""
    family = f" {finding.family}:" if finding.family else ""
    return f"{start}{kind};{family} {escape(finding.reason or '')}{escape(way_out)}"


def describe(section: Section, results: Results) -> None:
    """Fill a section with a census of architectures."""
    section.title = "Architectures that take a merger"
    census = section.attempt("census", lambda: census_of(results), None)
    if census is not None:
        totals = {status: len(census.of_status(status)) for status in get_args(Status)}
        section.verdict = (
            f"Of {len(census.findings):,} architectures, **{totals['merged']:,} take a merger**; {totals['refused']:,} "
            f"are refused with a reason, and {totals['failed']:,} failed."
        )
        section.figures += [figures.Figure(f"{total:,}", status) for status, total in totals.items() if total]
        section.tables += tables(census)
        section.missing += [f"{library} (it was not installed)" for library in census.missing]
    section.details["Settings"] = {"architectures": "with the defaults of their libraries, without weights"}
