"""The page of measured speed, made from the committed benchmarks: ``python -m tools.speed_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.pictures.bench import rounds_text
from patchmerger.runs.files import read_json, write_text
from patchmerger.speed.roofline import PeakRates
from patchmerger.speed.settings import compile_name
from tools.markdown import given_paths
from tools.speed_targets import TARGETS, Row, Target, activations, merged_timing

RESULTS, PAGE = Path("results"), Path("docs/measured-speed.md")

_INTRO = """\
# Measured speed

<!-- Made by `make speed-page` from results/bench-*.json; what is written here by hand is lost. -->

What `patchmerger bench` measured; [how](speed.md#how-it-is-measured). Each speed-up is the median of the paired ratios
of rounds in which plain and merged are interleaved, with its quartiles. *Predicted* is the ratio of FLOPs, *roofline*
what the peak rates of the device allow. Times belong to the device that is named; ratios are what is claimed. A `?`
marks an uncertain speed-up: few rounds, or wide quartiles.

The CPU here has no bf16 arithmetic (neither AMX nor avx512_bf16), so that float32 is its best mode. Nothing was
measured on a GPU yet.

## Against the targets

The best of the modes measured (eager, compiled, frozen), in the number format that the row names.

| what | target | measured | in | |
|---|---:|---:|---|---|
{targets}
"""

_ROWS = """\
| model | | batch | format | plain, images/s | merged | speed-up (quartiles) | ÷ predicted | ÷ roofline | activations |
|---|---|---:|---|---:|---:|---:|---:|---:|---:|
"""

_PARTS = "| part | plain, ms | merged, ms | merged, share | merged, GFLOPs/s |\n|---|---:|---:|---:|---:|\n"


def render(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        benchmarks: The content of each benchmark's file, by the name of the file.
    """
    targets = "\n".join(_target(target, benchmarks) for target in TARGETS)
    return "\n".join([_INTRO.format(targets=targets), *(_section(name, b) for name, b in benchmarks.items())])


def _target(target: Target, benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    limit = "≤" if target.at_most else "≥"
    found = target.best(benchmarks.values())
    if found is None:
        return f"| {target.what} | {limit} {_number(target, target.goal)} | – | | not measured |"
    value, row = found
    reason = f": {target.reason}" if target.reason else ""
    verdict = "reached" if target.reached(value) else f"**missed**{reason}"
    return (
        f"| {target.what} | {limit} {_number(target, target.goal)} | {_number(target, value)} | {_mode(row['key'])} "
        f"| {verdict} |"
    )


def _number(target: Target, value: float) -> str:
    return f"{value:.1%}" if target.percent else f"{value:.2f}"


def _mode(key: Mapping[str, Any]) -> str:
    return f"{key['precision']}, {compile_name(key['compile'])}, {key['device']}"


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
        _ROWS + "\n".join(_row(row) for row in results["rows"]),
        "",
    ]
    for profile in results["profiles"]:
        if profile["error"] is None:
            lines += _profile(profile)
    if (RESULTS / f"{name}.png").is_file():
        lines += [f"![Speed-up against batch size](../results/{name}.png)", ""]
    return "\n".join(lines)


def _row(row: Row) -> str:
    key, merged = row["key"], merged_timing(row)
    cells = [key["model"], "training step" if key["training"] else "inference", str(key["batch_size"]), _mode(key)]
    if merged is None:
        return f"| {' | '.join([*cells, row['error'], *[''] * 5])} |"
    timings = {timing["name"]: timing for timing in row["measurement"]["timings"]}
    low, high = (1 / ratio for ratio in reversed(merged["ratio_quartiles"]))
    kept = activations(row)
    cells += [f"{timings[name]['images_per_second']:,.1f}" for name in ("plain", "merged")]
    cells += [
        f"{merged['speedup']:.2f}×{'?' * bool(merged['uncertain'])} ({low:.2f} … {high:.2f})",
        f"{merged['of_predicted']:.2f}",
    ]
    cells += [f"{merged['of_roofline']:.2f}", f"{kept:.2f}" if kept and key["training"] else ""]
    text = f"| {' | '.join(cells)} |"
    for other, (middle, (lower, upper)) in row["merged_against"].items():
        speed = f"{timings[other]['images_per_second']:,.1f}"
        against = f"merged is {middle:.2f}× as fast ({lower:.2f} … {upper:.2f})"
        text += f"\n| {' | '.join([f'*{other}*', *cells[1:4], '', speed, against, '', '', ''])} |"
    return text


def _profile(profile: Mapping[str, Any]) -> list[str]:
    key, models = profile["key"], profile["models"]
    plain = {part["name"]: f"{1e3 * part['seconds']:.1f}" for part in models["plain"]}
    rows = [
        f"| {part['name']} | {plain.get(part['name'], '–')} | {1e3 * part['seconds']:.1f} | {part['share']:.1%} "
        f"| {part['flops_per_second'] / 1e9:,.1f} |"
        for part in models["merged"]
    ]
    return [f"Parts of a forward pass, {key['model']}, batch {key['batch_size']}, {_mode(key)}:", "",
            _PARTS + "\n".join(rows), ""]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page; the folder of results and the page may be given."""
    results, page = given_paths(arguments, RESULTS, PAGE)
    found = {path.stem: read_json(path) for path in sorted(results.glob("bench-*.json"))}
    write_text(page, render({name: b for name, b in found.items() if b["rows"]}))


if __name__ == "__main__":
    main()
