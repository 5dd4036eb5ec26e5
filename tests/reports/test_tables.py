"""Tables fold where the terminal is narrow: every column is there, with the columns that say which row it is."""

import json
from pathlib import Path

import pytest

from patchmerger.reports import accelerate_study, compare, sweep, transfer
from patchmerger.reports.parts.tables import Cell, Table, print_table, report_console

RESULTS = Path(__file__).parents[2] / "results"


TABLE = Table(
    "title",
    ["variant", "accuracy", "speed-up\nmeasured"],
    [
        [Cell("plain"), Cell("90.12 ± 1.00", 0.9012), Cell("1.00 (1.00)", 1.0)],
        [Cell("merged [1]"), Cell("90.02 ± 1.10", 0.9002), Cell("1.79 (1.90)", 1.79)],
    ],
)


@pytest.mark.parametrize(("width", "parts"), [("200", 1), ("50", 1), ("38", 2)])
def test_a_table_is_folded_where_it_does_not_fit(width, parts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    print_table(report_console(), TABLE)
    printed = capsys.readouterr().out
    assert printed.count("merged [1]") == parts
    assert all(text in printed for text in ("90.02 ± 1.10", "1.79 (1.90)", "speed-up", "title"))
    assert max(map(len, printed.splitlines())) <= int(width)


def test_what_goes_into_a_file_is_not_folded(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(report_console(), TABLE)
    assert capsys.readouterr().out.count("merged [1]") == 1


@pytest.mark.parametrize(
    ("report", "file"),
    [
        (compare.report, "digits"),
        (compare.report, "cifar10-width-128"),
        (sweep.report, "sweep-cifar10-small"),
        (transfer.report, "transfer-small"),
        (accelerate_study.report, "accelerate-vit-small-cifar10"),
    ],
)
def test_tables_of_committed_results_fit_80_columns(report, file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    report({**json.loads((RESULTS / f"{file}.json").read_text()), "folder": str(tmp_path)})
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert not any("…" in line for line in lines if line.startswith(" "))
