"""What ``patchmerger compare`` prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from patchmerger.texts import count_text, difference_text, shown_text


def show_comparison(results: dict[str, Any]) -> None:
    """Print the table of ``patchmerger compare`` and what it means."""
    console = Console()
    console.width = max(console.width, 134)  # a narrower terminal wraps, but no number is cut
    metric, baseline = results["metric"], results["baseline"]
    seeds = results["settings"]["seeds"]
    title = f"{results['settings']['data']['source']}, {seeds} seed{'s' if seeds > 1 else ''}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column("variant", no_wrap=True)
    for column in (
        "tokens", "GFLOPs", "params", f"{metric}\n%", f"− {baseline}, points\n[95% interval]", "trained\ns",
        "images/s", "speed-up\n(predicted)", "speed-up\nin training",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    speed = {mode: {t["name"]: t for t in results["speed"][mode]["timings"]} for mode in ("inference", "training")}
    for name, v in results["variants"].items():
        spread = "" if v["metric_sd"] is None else f" ± {100 * v['metric_sd']:.2f}"
        inference, training = speed["inference"][name], speed["training"][name]
        table.add_row(
            name,
            f"{v['tokens_in']}→{v['tokens_out']}" if v["mergers"] else str(v["tokens_in"]),
            f"{v['flops'] / 1e9:.3g}",
            count_text(v["params"]),
            f"{100 * v['metric_mean']:.2f}{spread}",
            difference_text(v["difference"]),
            f"{v['train_seconds']:.0f}",
            f"{inference['images_per_second']:,.0f}",
            f"{inference['speedup']:.2f} ({1 / v['flops_ratio']:.2f})",
            f"{training['speedup']:.2f}",
        )
    console.print(table)
    for name, v in results["variants"].items():
        if v["difference"] is not None:
            paired = f"paired over {v['difference']['n']:,} {v['difference']['over']}"
            console.print(f"{name} against {baseline}: {shown_text(v['difference'])} ({paired}).")
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)
