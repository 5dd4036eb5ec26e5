"""The page of measured speed, made from the committed benchmarks: ``python -m tools.speed_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports import bench
from patchmerger.reports.pictures.bench import format_text, rounds_text
from patchmerger.runs.files import read_json, write_text
from patchmerger.speed.roofline import PeakRates
from tools.markdown import given_paths, markdown_table, shown_table
from tools.speed_targets import TARGETS, Target

RESULTS, PAGE = Path("results"), Path("docs/measured-speed.md")

_INTRO = """\
# Measured speed

<!-- Made by `make speed-page` from results/bench-*.json; what is written here by hand is lost. -->

What `patchmerger bench` measured; [how](speed.md#how-it-is-measured). Each speed-up is the median of the paired ratios
of rounds in which plain and merged are interleaved, with its quartiles. *Of FLOPs* and *of roofline*: how much of the
speed-up is attained that the FLOPs predict, and that the peak rates of the device allow; *kept*: activation memory,
merged ÷ plain. Times belong to the device that is named; ratios are what is claimed. A `?` marks an uncertain speed-up:
few rounds, or wide quartiles.

The CPU here has no bf16 arithmetic (neither AMX nor avx512_bf16), so that float32 is its best mode. Nothing was
measured on a GPU yet.

## Against the targets

The best of the modes measured (eager, compiled, frozen), in the number format that the row names.

{targets}
"""


def render(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        benchmarks: The content of each benchmark's file, by the name of the file.
    """
    rows = [_target(target, benchmarks) for target in TARGETS]
    targets = markdown_table(["what", "target", "measured", "in", ""], rows, (1, 2))
    return "\n".join([_INTRO.format(targets=targets), *(_section(name, b) for name, b in benchmarks.items())])


def _target(target: Target, benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    goal = f"{'≤' if target.at_most else '≥'} {_number(target, target.goal)}"
    found = target.best(benchmarks.values())
    if found is None:
        return [target.what, goal, "–", "", "not measured"]
    value, row = found
    reason = f": {target.reason}" if target.reason else ""
    key, verdict = row["key"], "reached" if target.reached(value) else f"**missed**{reason}"
    return [target.what, goal, _number(target, value), f"{format_text(key)}, {key['device']}", verdict]


def _number(target: Target, value: float) -> str:
    return f"{value:.1%}" if target.percent else f"{value:.2f}"


def _section(name: str, results: Mapping[str, Any]) -> str:
    where = results["environment"]
    rates = {str(PeakRates(**row["peak_rates"])) for row in results["rows"]}
    lines = [
        f"## {name}",
        "",
        f"On {where['device_name']}, {where['threads']} threads, torch {where['torch']}, timm {where['timm']}; "
        f"{rounds_text(results)} rounds. {'; '.join(sorted(r[0].upper() + r[1:] for r in rates))}.",
        "",
        f"```console\n$ {results['command']}\n```",
        "",
        shown_table(bench.table(results)),
        "",
        *(f"- {line}" for row in results["rows"] for line in bench.against_lines(row)),
        "",
    ]
    for table in bench.profile_tables(results):
        lines += [f"{table.caption}:", "", shown_table(table), ""]
    if (RESULTS / f"{name}.png").is_file():
        lines += [f"![Speed-up against batch size](../results/{name}.png)", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; the folder of results and the page may be given."""
    results, page = given_paths(arguments, RESULTS, PAGE)
    found = {path.stem: read_json(path) for path in sorted(results.glob("bench-*.json"))}
    write_text(page, render({name: b for name, b in found.items() if b["rows"]}))


if __name__ == "__main__":
    main()
