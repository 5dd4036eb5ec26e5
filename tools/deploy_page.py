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

_TARGETS = (("int8", 32, 13.0), ("int8", 1, 8.0))
"""Merged ViT-B/16 in its best form over the plain one in torch, eager, float32: weights, batch, times as fast."""

_SAME = ((32, 0.95), (1, 0.85))
"""Of the speed-up that FLOPs predict, the share that merged must attain over plain in the same form."""

_PROCESSOR = """\
13 and 8 times were set for processors that multiply int8 or bfloat16 matrices in hardware (AMX, or AVX-512 with VNNI).
On one without, as below where it says avx2, int8 saves memory traffic and little arithmetic."""

_AGREEMENT = {"float32": 1.0, "bf16": 0.99, "int8": 0.97}


def render(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, in Markdown.

    Args:
        measured: The content of each file of results, by the name of the file.
    """
    return "\n".join([_INTRO, *_targets(measured), *(_section(name, each) for name, each in measured.items())])


def _targets(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    rows = [row for each in measured.values() for row in each["rows"]]
    timings = [(row["batch_size"], timing) for row in rows for timing in row["timings"] if timing["key"]["merged"]]
    base = [(size, t) for size, t in timings if "vit_base" in t["key"]["model"]]
    for precision, batch, goal in _TARGETS:
        found = [t for size, t in base if size == batch and t["key"]["precision"] == precision and t["over_eager"]]
        best = max(found, key=lambda t: float(t["over_eager"][1]), default=None)
        value = None if best is None else best["over_eager"][1]
        lines.append(_target(f"ViT-B/16 merged, {precision}, batch {batch} ÷ plain eager float32", goal, value, best))
    for batch, goal in _SAME:
        what = f"ViT-B/16 merged ÷ plain in the same form ÷ predicted, batch {batch}"
        found = [t for size, t in base if size == batch and t["over_plain"] and t["predicted"]]
        lines += [_target(what, goal, t["over_plain"][1] / t["predicted"], t) for t in found]
        if not found:
            lines.append(_target(what, goal, None, None))
    forms = [form for each in measured.values() for form in each["forms"] if not form["error"] and form["parity"]]
    for precision, goal in _AGREEMENT.items():
        found = [form for form in forms if form["key"]["precision"] == precision and form["key"]["merged"]]
        worst = min(found, key=lambda form: float(form["parity"]["agreement"]), default=None)
        value = None if worst is None else worst["parity"]["agreement"]
        if precision == "bf16" and value is None:
            continue  # measured only where the processor computes in it
        lines.append(_target(f"class agrees with the trained, merged eager model, {precision}", goal, value, worst))
    table = markdown_table(["what", "target", "measured", "in", ""], lines, (1, 2))
    return ["## Against the targets", "", table, "", _PROCESSOR, ""]


def _target(what: str, goal: float, value: float | None, found: Mapping[str, Any] | None) -> list[str]:
    if value is None or found is None:
        return [what, f"≥ {goal:g}", "–", "", "not measured"]
    reached = "reached" if value >= goal else "**missed**"
    return [what, f"≥ {goal:g}", f"{value:.3g}", f"{found['key']['form']}, {found['key']['precision']}", reached]


def _section(name: str, results: Mapping[str, Any]) -> str:
    lines = [f"## {name}", "", f"```console\n$ {results['command']}\n```", ""]
    for table in tables(results):
        lines += [f"{table.caption}:", "", shown_table(table), ""]
    lines += [f"- {line}" for line in notes(results)]
    if (RESULTS / f"{name}.png").is_file():
        lines += ["", f"![Images a second in each form](../results/{name}.png)"]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and draw the pictures; the folder of results and the page may be given."""
    folder, page = given_paths(arguments, RESULTS, PAGE)
    read = {path.stem: read_json(path) for path in sorted(folder.glob("deploy-*.json"))}
    found = {name: each for name, each in read.items() if (each.get("kind"), each.get("schema")) == (KIND, SCHEMA)}
    for name, each in found.items():
        draw(each, folder / f"{name}.png")
    write_text(page, render(found))


if __name__ == "__main__":
    main()
