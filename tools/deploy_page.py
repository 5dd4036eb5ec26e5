"""The page of speed where models are deployed, made from committed measurements: ``python -m tools.deploy_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.deployment import notes, tables
from patchmerger.reports.pictures.deployment import draw
from patchmerger.runs.files import read_json, write_text
from patchmerger.speed.deployment import KIND, SCHEMA
from tools.markdown import given_paths, markdown_table, shown_table

RESULTS, PAGE = Path("results"), Path("docs/deploy.md")

_INTRO = """\
# Deployed: which form is fastest

<!-- Made by `make deploy-page` from results/deploy-*.json; what is written here by hand is lost. -->

What `patchmerger bench --formats` measured: the same models in torch and as files of [`patchmerger export`](export.md),
plain and merged, each form in turn in every round. *Median* and *p95* are of the latency of a batch; ratios are medians
of those within the rounds. Times belong to the machine that is named.
"""

_TARGETS = (("int8", 32, 13.0), ("bf16", 32, 9.0), ("int8", 1, 8.0), ("bf16", 1, 5.0))
"""Merged ViT-B/16 in its best form over the plain one in torch, eager, float32: weights, batch, times as fast."""

_SAME = ((32, 0.95), (1, 0.85))
"""Of the speed-up that FLOPs predict, the share that merged must attain over plain in the same form."""

_PROCESSOR = """\
13, 9, 8 and 5 times were set for a processor with matrix units (AMX). *Peak allows* is the most that the processor
below could reach: all FLOPs of the merged model at the rate of one large matmul in that number format, and all else
for nothing."""

_AGREEMENT = {"float32": 1.0, "bf16": 0.99, "int8": 0.97}


def render(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        measured: The content of each file of results, by the name of the file.
    """
    return "\n".join([_INTRO, *_targets(measured), *(_section(name, each) for name, each in measured.items())])


def _targets(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    base = [
        results for results in measured.values() if any("vit_base" in name for name in results["settings"]["models"])
    ]
    lines = [line for target in _TARGETS for line in _against_plain_eager(base, *target)]
    merged = [
        (row["batch_size"], t) for results in base for row in results["rows"] for t in row["timings"] if t["predicted"]
    ]
    for batch, goal in _SAME:
        what = f"ViT-B/16 merged ÷ plain in the same form ÷ predicted, batch {batch}"
        found = [timing for size, timing in merged if size == batch and timing["over_plain"]]
        lines += [_target(what, goal, t["over_plain"][1] / t["predicted"], t) for t in found]
        if not found:
            lines.append(_target(what, goal, None, None))
    forms = [form for each in measured.values() for form in each["forms"] if not form["error"] and form["parity"]]
    for precision, goal in _AGREEMENT.items():
        compared = [form for form in forms if form["key"]["precision"] == precision and form["key"]["merged"]]
        worst = min(compared, key=lambda form: float(form["parity"]["agreement"]), default=None)
        value = None if worst is None else worst["parity"]["agreement"]
        if precision == "bf16" and value is None:
            continue  # measured only where the processor computes in it
        lines.append(_target(f"class agrees with the trained, merged eager model, {precision}", goal, value, worst))
    table = markdown_table(["what", "target", "measured", "peak allows", "in", ""], lines, (1, 2, 3))
    return ["## Against the targets", "", table, "", _PROCESSOR, ""]


def _against_plain_eager(
    measured: Sequence[Mapping[str, Any]], precision: str, batch: int, goal: float
) -> list[list[str]]:
    """The best form of the merged model against the plain one, and what the processor's matmuls would allow."""
    found = [
        (results, timing)
        for results in measured
        for row in results["rows"]
        for timing in row["timings"]
        if row["batch_size"] == batch and timing["over_eager"]
        if timing["key"]["merged"] and timing["key"]["precision"] == precision
    ]
    what = f"ViT-B/16 merged, {precision}, batch {batch} ÷ plain eager float32"
    if not found:
        return [] if precision == "bf16" else [_target(what, goal, None, None)]
    results, best = max(found, key=lambda pair: float(pair[1]["over_eager"][1]))
    flops = next(form["flops"] for form in results["forms"] if form["key"] == best["key"])
    speedup, rate = best["over_eager"][1], flops * best["images_per_second"]
    return [_target(what, goal, speedup, best, allowed=speedup * results["peak_rates"][precision] / rate)]


def _target(
    what: str, goal: float, value: float | None, found: Mapping[str, Any] | None, allowed: float | None = None
) -> list[str]:
    if value is None or found is None:
        return [what, f"≥ {goal:g}", "–", "", "", "not measured"]
    reached = "reached" if value >= goal else "**missed**"
    form = f"{found['key']['form']}, {found['key']['precision']}"
    return [what, f"≥ {goal:g}", f"{value:.3g}", "" if allowed is None else f"{allowed:.3g}", form, reached]


def _section(name: str, results: Mapping[str, Any]) -> str:
    lines = [f"## {name}", "", f"```console\n$ {results['command']}\n```", ""]
    for table in tables(results):
        lines += [f"{table.caption}:", "", shown_table(table), ""]
    lines += [f"- {line}" for line in notes(results)]
    if (RESULTS / f"{name}.png").is_file():
        lines += ["", f"![Images a second in each form](../results/{name}.png)"]
    return "\n".join([*lines, ""])


def measured_in(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The content of each file of today's schema, by its name."""
    read = {path.stem: read_json(path) for path in sorted(folder.glob("deploy-*.json"))}
    return {name: each for name, each in read.items() if (each.get("kind"), each.get("schema")) == (KIND, SCHEMA)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and draw the pictures; the folder of results and the page may be given."""
    folder, page = given_paths(arguments, RESULTS, PAGE)
    found = measured_in(folder)
    for name, each in found.items():
        draw(each, folder / f"{name}.png")
    write_text(page, render(found))


if __name__ == "__main__":
    main()
