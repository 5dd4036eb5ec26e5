"""What ``patchmerger sweep`` and ``patchmerger transfer`` print."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.studies.cells import OPTIONS, PLAIN
from patchmerger.tables import difference_text

_WIDTH = 130  # a narrower terminal wraps, but no number is cut


def show_sweep(results: dict[str, Any]) -> int:
    """Print the table of ``patchmerger sweep``; the exit status is 1 where a cell failed."""
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(_sweep_table(results))
    for unit, error in results["errors"].items():
        console.print(f"[bold]failed[/bold] {escape(unit)}: {escape(error)}", soft_wrap=True)
    if results["errors"]:
        console.print("The same command tries again what failed.")
    if results["missing"]:
        console.print(
            f"{len(results['missing'])} runs are not done, so speed is not measured and nothing is drawn yet."
        )
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)
    return 1 if results["errors"] else 0


def _sweep_table(results: dict[str, Any]) -> Table:
    seeds = results["settings"]["seeds"]
    title = f"{results['settings']['data']['source']}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    varied = [name for name in OPTIONS if results["settings"][name]]
    table.add_column("merged\nafter", justify="right")
    table.add_column("tokens\nM", justify="right")
    for name in varied:
        table.add_column(OPTIONS[name], justify="right")
    for column in (
        "GFLOPs", f"{results['metric']}\n%", "− plain, points\n[95% interval]", "trained\ns",
        "speed-up\n(predicted)", "speed-up\nin training", "rank\nof A", "queries\nalike",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    plain = results["plain"]
    table.add_row(PLAIN, "", *("" for _ in varied), *_columns(plain, plain, None))
    for name, cell in results["cells"].items():
        merge, speed = cell["merge"], cell["speed"]
        if cell["options"] is None:
            first, options = [escape(name), _listed(merge["num_tokens"])], ["–"] * len(varied)
        else:
            first = [_listed(merge["after"]), _listed(merge["num_tokens"])]
            options = [str(cell["options"][option]) for option in varied]
        table.add_row(*first, *options, *_columns(cell, plain, speed))
    return table


def _columns(cell: dict[str, Any], plain: dict[str, Any], speed: dict[str, Any] | None) -> list[str]:
    gflops = f"{cell['flops'] / 1e9:.3g}"
    if cell["metric_mean"] is None:
        accuracy = ["–", "–", "–"]
    else:
        spread = "" if cell["metric_sd"] is None else f" ± {100 * cell['metric_sd']:.2f}"
        accuracy = [f"{100 * cell['metric_mean']:.2f}{spread}", difference_text(cell["difference"])]
        accuracy.append(f"{cell['train_seconds']:.0f}")
    if cell is plain:
        speeds = ["1", "1"]
    elif speed is None:
        speeds = [f"– ({plain['flops'] / cell['flops']:.2f})", "–"]
    else:
        inference, training = (speed[mode]["timings"][1]["speedup"] for mode in ("inference", "training"))
        speeds = [f"{inference:.2f} ({plain['flops'] / cell['flops']:.2f})", f"{training:.2f}"]
    mergers = (cell["merger"] or {}).values()
    ranks = [f"{m['effective_rank']:.1f}" for m in mergers]
    alike = [f"{m['similarity']:.2f}" for m in mergers if m["similarity"] is not None]
    return [gflops, *accuracy, *speeds, ", ".join(ranks), ", ".join(alike)]


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "half" if value is None else str(value)
