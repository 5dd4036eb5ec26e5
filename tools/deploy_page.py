"""The page of speed where models are deployed, made from committed measurements: ``python -m tools.deploy_page``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchmerger.reports.deployment import notes, tables
from patchmerger.reports.pictures.deployment import draw
from patchmerger.runs.files import read_json, write_text
from patchmerger.speed.deployment_record import KIND, SCHEMA
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

_SAME = {32: 0.95, 1: 0.85}
"""Of the speed-up that FLOPs predict, the share that merged must attain over plain in the same form, by batch size."""

_PROCESSOR = """\
13, 9, 8 and 5 times were set for a processor with matrix units (AMX). *Peak allows* is the most that the processor
could reach: each matmul at the rate of one large matmul in that number format, or as fast as its weights, inputs and
output pass through memory, whichever takes longer, and all else for nothing."""

_RELATIVE = """\
How much of the speed-up that FLOPs predict merged attains over plain in the same form; wanted are 0.95 at a batch of 32
and 0.85 at a batch of 1; below that it is bold. In brackets what the processor's peaks allow, as above: at a batch of 1
nine rows meet each matrix of weights after the merge, and reading that takes as long as before; the faster the
arithmetic, the larger the part of the time that it is. Of a form measured twice the run of more rounds counts."""

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
    forms = [
        (each, form)
        for each in measured.values()
        for form in each["forms"]
        if not form["error"] and form["parity"] and form["key"]["merged"]
    ]
    for precision, goal in _AGREEMENT.items():
        compared = [pair for pair in forms if pair[1]["key"]["precision"] == precision]
        if precision == "bf16" and not compared:
            continue  # measured only where the processor computes in it
        what = f"class agrees with the trained, merged eager model, {precision}"
        if not compared:
            lines.append(_target(what, goal, None, None))
            continue
        results, worst = min(compared, key=lambda pair: float(pair[1]["parity"]["agreement"]))
        lines.append(_target(what, goal, worst["parity"]["agreement"], worst, on=results))
    table = markdown_table(["what", "target", "measured", "peak allows", "in", "on", ""], lines, (1, 2, 3))
    return ["## Against the targets", "", table, "", _PROCESSOR, "", *_relative(base)]


def _relative(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of merged ÷ plain in the same form, ÷ predicted: a row for each form, a column for each batch size."""
    heads: dict[str, None] = {}
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for results in sorted(measured, key=lambda each: int(each["settings"]["rounds"])):  # what has more rounds counts
        for row in results["rows"]:
            head = f"{_processor(results)}, batch {row['batch_size']}"
            for timing in (timing for timing in row["timings"] if timing["over_plain"] and timing["predicted"]):
                key = timing["key"]["form"], timing["key"]["precision"]
                cells.setdefault(key, {})[head] = _attained(timing, _SAME.get(row["batch_size"], 0.0))
                heads[head] = None
    lines = [[*key, *(found.get(head, "–") for head in heads)] for key, found in cells.items()]
    if not lines:
        return []
    table = markdown_table(["form", "weights", *heads], lines, tuple(range(2, 2 + len(heads))))
    return [_RELATIVE, "", table, ""]


def _attained(timing: Mapping[str, Any], goal: float) -> str:
    value, roofline = timing["over_plain"][1] / timing["predicted"], timing.get("roofline_speedup")
    shown = f"{value:.2f}" if value >= goal else f"**{value:.2f}**"
    return shown if roofline is None else f"{shown} ({roofline / timing['predicted']:.2f})"


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
    speedup, least = best["over_eager"][1], best.get("least_seconds")
    if least is None:
        flops = next(form["flops"] for form in results["forms"] if form["key"] == best["key"])
        least = batch * flops / results["peak_rates"][precision]
    return [_target(what, goal, speedup, best, on=results, allowed=speedup * batch / best["images_per_second"] / least)]


def _target(
    what: str,
    goal: float,
    value: float | None,
    found: Mapping[str, Any] | None,
    *,
    on: Mapping[str, Any] | None = None,
    allowed: float | None = None,
) -> list[str]:
    """A row of the table; ``found`` has the key of the form, ``on`` are the results that it is from."""
    if value is None or found is None or on is None:
        return [what, f"≥ {goal:g}", "–", "", "", "", "not measured"]
    reached = "reached" if value >= goal else "**missed**"
    form = f"{found['key']['form']}, {found['key']['precision']}"
    most = "" if allowed is None else f"{allowed:.3g}"
    return [what, f"≥ {goal:g}", f"{value:.3g}", most, form, _processor(on), reached]


def _processor(results: Mapping[str, Any]) -> str:
    """Its name, without the marks, and whether it has matrix units."""
    where = results["environment"]
    name = where["device_name"].replace("(R)", "").removesuffix(" Processor")
    return f"{name} with AMX" if where["arithmetic"].get("amx_int8") else name


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
