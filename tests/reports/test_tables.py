"""Tables fold where the terminal is narrow: every column is there, with the columns that say which row it is."""

import json
from pathlib import Path

import pytest
from rich.table import Table

from patchmerger.reports.acceleration_study import show_accelerations
from patchmerger.reports.comparison import show_comparison
from patchmerger.reports.sweep import show_sweep
from patchmerger.reports.tables import print_table, report_console
from patchmerger.reports.transfer import show_transfer

RESULTS = Path(__file__).parents[2] / "results"


def make_table() -> Table:
    table = Table(title="title")
    for name in ("variant", "accuracy", "speed-up\nmeasured"):
        table.add_column(name, no_wrap=True)
    table.add_row("plain", "90.12 ± 1.00", "1.00 (1.00)")
    table.add_row("merged", "90.02 ± 1.10", "1.79 (1.90)")
    return table


@pytest.mark.parametrize(("width", "parts"), [("200", 1), ("50", 1), ("34", 2)])
def test_a_table_is_folded_where_it_does_not_fit(width, parts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    print_table(report_console(), make_table())
    printed = capsys.readouterr().out
    assert printed.count("merged") == parts
    assert all(text in printed for text in ("90.02 ± 1.10", "1.79 (1.90)", "speed-up", "title"))
    assert max(map(len, printed.splitlines())) <= int(width)


def test_what_goes_into_a_file_is_not_folded(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(report_console(), make_table())
    assert capsys.readouterr().out.count("merged") == 1


@pytest.mark.parametrize(
    ("show", "file"),
    [
        (show_comparison, "digits"),
        (show_comparison, "cifar10-width-128"),
        (show_sweep, "sweep-cifar10-small"),
        (show_transfer, "transfer-small"),
        (show_accelerations, "accelerate-vit-small-cifar10"),
    ],
)
def test_tables_of_committed_results_fit_80_columns(show, file, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show(json.loads((RESULTS / f"{file}.json").read_text()))
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert not any("…" in line for line in lines if line.startswith(" "))
