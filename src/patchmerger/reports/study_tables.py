"""What ``patchmerger sweep`` and ``patchmerger transfer`` print."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.reports.numbers import difference_text, shown_text
from patchmerger.studies.cells import OPTIONS, PLAIN

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


def show_transfer(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger transfer`` and what it means."""
    console = Console()
    console.width = max(console.width, _WIDTH)
    settings, baseline = results["settings"], results["baseline"]
    seeds = settings["seeds"]
    sources = f"{settings['data']['source']} → {settings['downstream']['source']}"
    title = f"{sources}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("stage", no_wrap=True)
    table.add_column("variant", no_wrap=True)
    columns = ("GFLOPs", "accuracy\n%", f"− {baseline}, points\n[95% interval]", "seconds", "images/s", "× faster")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    stages = list(results["variants"][baseline]["stages"])
    for stage in stages:
        for name, variant in results["variants"].items():
            found = variant["stages"][stage]
            base = results["variants"][baseline]["stages"][stage]
            spread = "" if found["metric_sd"] is None else f" ± {100 * found['metric_sd']:.2f}"
            # All k share one pass for the features.
            timed = "train_seconds" in found or stage == stages[1]
            seconds = found.get("train_seconds", found.get("feature_seconds"))
            table.add_row(
                stage if name == next(iter(results["variants"])) else "",
                escape(name),
                f"{found.get('flops', variant['flops']) / 1e9:.3g}",
                f"{100 * found['metric_mean']:.2f}{spread}",
                difference_text(found["difference"]),
                f"{seconds:.0f}" if timed else "",
                f"{found['images_per_second']:,.0f}" if timed else "",
                f"{found['images_per_second'] / base['images_per_second']:.2f}" if timed else "",
                end_section=name == list(results["variants"])[-1],
            )
    console.print(table)
    for name in results["variants"]:
        if name != baseline:
            console.print(escape(_transfer_verdict(name, results)), soft_wrap=True)
    console.print(
        "Seconds and images/s: of training, and of making the features that all k share, one after another; the "
        "speed-ups in the line above are measured with the models in turns.",
        soft_wrap=True,
    )
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)


def _transfer_verdict(name: str, results: dict[str, Any]) -> str:
    """One line on a variant: where it is better or worse, and how much faster."""
    found = results["variants"][name]["stages"]
    known = {stage: shown_text(s["difference"]) for stage, s in found.items() if s["difference"] is not None}
    parts = [f"{text}: {', '.join(s for s in known if known[s] == text)}" for text in dict.fromkeys(known.values())]
    speed = {mode: {t["name"]: t["speedup"] for t in results["speed"][mode]["timings"]} for mode in results["speed"]}
    faster = f"{speed['training'][name]:.2f} × in training, {speed['inference'][name]:.2f} × in inference"
    predicted = 1 / results["variants"][name]["flops_ratio"]
    return f"{name}: {'; '.join(parts)}. Speed-up {faster} ({predicted:.2f} × predicted)."
