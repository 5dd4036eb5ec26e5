"""What ``patchmerger bench`` prints."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from patchmerger.speed.compiling import compile_name
from patchmerger.speed.record import RowKey
from patchmerger.speed.roofline import Ceilings

_COLUMNS = (
    "batch", "format", "plain\nimages/s", "merged\nimages/s", "speed-up\n(quartiles)", "by FLOPs\n(attained)",
    "by roofline\n(attained)", "memory, MiB\nplain → merged", "activations\nmerged ÷ plain",
)  # fmt: skip


def show_speed(results: dict[str, Any]) -> int:
    """Print the results of ``patchmerger bench``; returns the exit status."""
    console = Console()
    console.print(speed_text(results), soft_wrap=True, markup=False, highlight=False)
    if not results["finished"]:
        return 130
    return 0 if any(row["measurement"] for row in results["rows"]) else 2


def speed_text(results: dict[str, Any]) -> str:
    """The tables of a benchmark, what they mean, and what they were measured on."""
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault((row["key"]["model"], row["key"]["training"]), []).append(row)
    texts = [_group_text(name, training, rows) for (name, training), rows in groups.items()]
    texts += [_profile_text(profile) for profile in results["profiles"] if profile["error"] is None]
    texts += [f"not measured: {_label(row['key'])}: {row['error']}" for row in _all_rows(results) if row["error"]]
    slower = [row for row in results["rows"] if row["measurement"] and _merged(row)["speedup"] < 1]
    texts += [f"slower with the merger: {_label(row['key'])}: {_merged(row)['speedup']:.2f}×" for row in slower]
    texts.append(_conditions(results))
    return "\n".join(texts)


def _all_rows(results: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return (*results["rows"], *results["profiles"])


def _group_text(name: str, training: bool, rows: list[dict[str, Any]]) -> str:
    """One table: a model in inference or training."""
    first = rows[0]
    places = ", ".join(f"{m} tokens after block {a}" for m, a in zip(first["num_tokens"], first["after"], strict=True))
    table = Table(box=box.SIMPLE_HEAD)
    others = [t["name"] for t in _timings(rows) if t["name"] not in ("plain", "merged")]
    others = list(dict.fromkeys(others))
    extra = [column for other in others for column in (f"{other}\nspeed-up", f"merged against\n{other}")]
    for column in (*_COLUMNS, *extra):
        table.add_column(column, justify="left" if column == "format" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, others))
    return f"{name}, {places}: {'training step' if training else 'inference'}\n{table_text(table).rstrip()}\n"


def _cells(row: dict[str, Any], others: list[str]) -> list[str]:
    key = row["key"]
    mode = f"{key['precision']}, {compile_name(key['compile'])}, {key['device']}"
    cells = [str(key["batch_size"]), mode]
    if row["measurement"] is None:
        return [*cells, "–", "–", row["error"].split(" (")[0][:24], *(["–"] * (4 + 2 * len(others)))]
    timings = {t["name"]: t for t in row["measurement"]["timings"]}
    plain, merged = timings["plain"], timings["merged"]
    low, high = (1 / ratio for ratio in reversed(merged["ratio_quartiles"]))
    cells += [f"{t['images_per_second']:,.1f}" for t in (plain, merged)]
    cells.append(f"{merged['speedup']:.2f}× ({low:.2f} … {high:.2f})")
    for predicted, attained in (("predicted_speedup", "of_predicted"), ("roofline_speedup", "of_roofline")):
        cells.append(f"{merged[predicted]:.2f}× ({merged[attained]:.0%})" if merged[predicted] else "–")
    if plain["peak_memory"] is None:
        cells += ["–", "–"]
    else:
        cells.append(" → ".join(f"{t['peak_memory'] / 2**20:,.0f}" for t in (plain, merged)))
        cells.append(f"{merged['activation_memory'] / plain['activation_memory']:.2f}")
    for other in others:
        middle, (low, high) = row["merged_against"][other]
        cells += [f"{timings[other]['speedup']:.2f}×", f"{middle:.2f}× ({low:.2f} … {high:.2f})"]
    return cells


def _profile_text(profile: dict[str, Any]) -> str:
    """One table: the stages of a forward pass, plain beside merged."""
    key = profile["key"]
    title = (
        f"{key['model']}, stages of a forward pass, batch of {key['batch_size']}, {key['precision']}, {key['device']}"
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("stage")
    for column in ("plain\nms", "share", "GFLOPs/s", "merged\nms", "share", "GFLOPs/s", "speed-up", "by FLOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    plain = {stage["name"]: stage for stage in profile["models"]["plain"]}
    for stage in profile["models"]["merged"]:
        other = plain.get(stage["name"])
        before = _stage_cells(other) if other else ["–"] * 3
        ratios = ["–", "–"]
        if other:
            fewer = other["flops"] / stage["flops"] if stage["flops"] else None
            ratios = [f"{other['seconds'] / stage['seconds']:.2f}×", f"{fewer:.2f}×" if fewer else "–"]
        table.add_row(stage["name"], *before, *_stage_cells(stage), *ratios)
    return f"{title}\n{table_text(table).rstrip()}\n"


def _stage_cells(stage: dict[str, Any]) -> list[str]:
    return [f"{stage['seconds'] * 1e3:.2f}", f"{stage['share']:.1%}", f"{stage['flops_per_second'] / 1e9:,.1f}"]


def _conditions(results: dict[str, Any]) -> str:
    """How and on what it was measured."""
    settings, lines = results["settings"], list[str]()
    measured = [row for row in results["rows"] if row["measurement"]]
    ceilings = {tuple(row["ceilings"].items()): row["ceilings"] for row in results["rows"]}
    lines += [str(Ceilings(**values)) for values in ceilings.values()]
    where = results["environment"]
    counts = sorted({row["measurement"]["rounds"] for row in measured}) or [0]
    rounds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines.append(
        f"medians of {rounds} rounds after {settings['warmup']} untimed steps, models in turn; "
        f"{where['device_name']}, {where['threads']} threads, load {where['load_average']}, torch {where['torch']}, "
        f"timm {where['timm']}"
    )
    if not results["finished"]:
        on = "; the same command goes on with the others" if "--out" in results["command"] else ""
        lines.append(f"unfinished: {len(measured)} rows measured{on}")
    return "\n".join(lines)


def _label(key: dict[str, Any]) -> str:
    return str(RowKey(**key))


def _timings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [timing for row in rows if row["measurement"] for timing in row["measurement"]["timings"]]


def _merged(row: dict[str, Any]) -> dict[str, Any]:
    return next(timing for timing in row["measurement"]["timings"] if timing["name"] == "merged")


def table_text(table: Table) -> str:
    """A rich table as text, without colours and as wide as it needs."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
