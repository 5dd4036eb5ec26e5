"""What the commands print: tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


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
            console.print(f"{name}: {verdict(v['difference'])} {_than(v['difference'], baseline)}.")
    console.print(f"Results, picture and models: {results['folder']}", soft_wrap=True)


def count_text(count: int) -> str:
    """A number of parameters, to three digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def difference_text(difference: dict[str, Any] | None) -> str:
    """A paired difference in points, with its interval."""
    if difference is None:
        return "–"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def verdict(difference: dict[str, Any]) -> str:
    """In words: what the interval says."""
    if difference["low"] > 0:
        return "more accurate"
    if difference["high"] < 0:
        return "less accurate"
    return "as accurate, within the interval,"


def _than(difference: dict[str, Any], baseline: str) -> str:
    word = "as" if verdict(difference).startswith("as") else "than"
    return f"{word} {baseline} (paired over {difference['n']} {difference['over']})"


def show_fit(results: dict[str, Any]) -> None:
    """Print the result of ``patchmerger fit``."""
    console = Console()
    images = results["images"]
    console.print(images["description"])
    for bad in images["skipped"]:
        console.print(f"  left out: {bad}")
    console.print(
        f"test {results['metric']}: [bold]{100 * results['test_metric']:.2f}%[/bold] on {images['test']:,} images; "
        f"{results['flops'] / 1e9:.3g} GFLOPs an image, {results['params']:,} parameters, "
        f"predicted speed-up {results['predicted_speedup']:.2f}; trained for {results['seconds']:.0f} s "
        f"({results['images_per_second']:,.0f} images/s)"
    )
    console.print(f"Model and logs: {results['folder']}", soft_wrap=True)


def show_evaluation(result: dict[str, Any]) -> None:
    """Print the result of ``patchmerger test``."""
    console = Console()
    console.print(result["data"])
    for name, value in result.get("per_class", {}).items():
        console.print(f"  {name}: {100 * value:.2f}%")
    console.print(
        f"{result['split']} {result['metric']}: [bold]{100 * result['value']:.2f}%[/bold] "
        f"on {result['images']:,} images"
    )
