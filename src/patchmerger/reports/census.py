"""What ``patchmerger hosts`` prints: architectures one by one, or families and reasons in tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.census.census import Census, Finding

# Up to so many architectures a census shows each by itself.
_FEW = 20


def show_census(census: Census, *, names: bool = False, again: str | None = None) -> int:
    """Print a census; the exit status is 1 where something failed.

    Args:
        census: What was found.
        names: Name every architecture below the tables of many.
        again: The option that finds it anew, for a census that was taken earlier.
    """
    console = Console()
    if len(census.findings) <= _FEW:
        for finding in census.findings:
            console.print(_answer(finding), soft_wrap=True, highlight=False)
    else:
        _show_tables(console, census)
        if names:
            _show_names(console, census)
        for finding in [*census.of_status("not buildable"), *census.failures]:
            console.print(_answer(finding), soft_wrap=True, highlight=False)
    for library in census.missing:
        console.print(f"{library} is not installed: its models were left out")
    if again is not None:
        versions = ", ".join(f"{library} {census.versions[library]}" for library in census.counts)
        console.print(
            f"As found with {versions}; {again} tries the installed versions", soft_wrap=True, highlight=False
        )
    return 1 if census.failures else 0


def _show_tables(console: Console, census: Census) -> None:
    statuses = ("merged", "refused", "not buildable", "failed")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("library")
    for status in statuses:
        table.add_column(status, justify="right")
    for library, counts in census.counts.items():
        table.add_row(library, *(f"{counts.get(status, 0):,}" for status in statuses))
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("merged", "library", "prefix", "positions"):
        table.add_column(name, no_wrap=name != "prefix")
    table.add_column("number", justify="right")
    for family in census.families:
        prefixes = ", ".join(map(str, family.prefixes))
        table.add_row(family.name, family.library, prefixes, family.positions or "–", f"{len(family.members):,}")
    console.print(table)
    table = Table("refused", "reason", box=box.SIMPLE_HEAD)
    table.add_column("number", justify="right")
    for group in census.refused:
        table.add_row(group.kind, group.reason, f"{len(group.members):,}")
    if census.refused:
        console.print(table)


def _show_names(console: Console, census: Census) -> None:
    groups: list[tuple[str, Sequence[Finding]]] = [(f"{f.name} ({f.library})", f.members) for f in census.families]
    groups += [(f"refused, {group.reason}", group.members) for group in census.refused]
    for title, members in groups:
        listed = ", ".join(finding.name for finding in members)
        console.print(f"[bold]{escape(title)}[/bold]: {escape(listed)}", soft_wrap=True, highlight=False)


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
