"""What the commands print: tables for the terminal."""

from __future__ import annotations

from math import log2
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patchmerger.census import Finding
from patchmerger.fewshot_result import FewShot
from patchmerger.studies.findings import Census

# Up to so many architectures a census shows each by itself.
_FEW = 20


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


def show_few_shot(result: FewShot) -> None:
    """Print the table of ``patchmerger fewshot``."""
    console = Console()
    console.print(result.data)
    table = Table(title=escape(result.model), box=box.SIMPLE_HEAD, title_style="bold")
    for column in ("images\na class", "test accuracy\n%", "validation\n%", "strength chosen"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in result.results:
        spread = "" if r.sd is None else f" ± {100 * r.sd:.2f}"
        low, high = (f"2^{log2(strength):g}" for strength in (min(r.strengths), max(r.strengths)))
        table.add_row(
            str(r.shots),
            f"{100 * r.mean:.2f}{spread}",
            f"{100 * sum(r.validation_accuracies) / result.draws:.2f}",
            low if low == high else f"{low} … {high}",
        )
    console.print(table)
    images = result.images
    console.print(
        f"{f'mean ± sd over {result.draws} draws' if result.draws > 1 else 'one draw'} (seed {result.seed}); strength "
        f"chosen on {images['validation']:,} validation images, accuracy on {images['test']:,} test images; "
        f"{result.feature_dim} features of images of {result.image_size} pixels; "
        f"{sum(result.seconds.values()):.0f} s on {result.environment['device_name']}"
    )


def show_census(census: Census) -> int:
    """Print what ``patchmerger hosts`` found; the exit status is 1 where something failed."""
    console = Console()
    console.width = max(console.width, 100)
    if len(census.findings) <= _FEW:
        for finding in census.findings:
            console.print(_answer(finding), soft_wrap=True, highlight=False)
    else:
        _show_families(console, census)
        for finding in [*census.of_status("not buildable"), *census.failures]:
            console.print(_answer(finding), soft_wrap=True, highlight=False)
    for library in census.missing:
        console.print(f"{library} is not installed: its models were left out")
    return 1 if census.failures else 0


def _show_families(console: Console, census: Census) -> None:
    statuses = ("merged", "refused", "not buildable", "failed")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("library")
    for status in statuses:
        table.add_column(status, justify="right")
    for library, counts in census.counts.items():
        table.add_row(library, *(f"{counts.get(status, 0):,}" for status in statuses))
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("merged", "library", "prefix", "positions"):
        table.add_column(name, no_wrap=True)
    table.add_column("architectures", justify="right")
    for family in census.families:
        prefixes = ", ".join(map(str, family.prefixes))
        table.add_row(family.name, family.library, prefixes, family.positions or "–", f"{len(family.members):,}")
    console.print(table)
    table = Table("refused", "reason", box=box.SIMPLE_HEAD)
    table.add_column("architectures", justify="right")
    for group in census.refused:
        table.add_row(group.kind, group.reason, f"{len(group.members):,}")
    console.print(table)


def _answer(finding: Finding) -> str:
    """One architecture in one line."""
    start = f"{escape(finding.name)} ({finding.library}): [bold]{finding.status}[/bold]"
    if finding.status == "merged":
        asked = "" if finding.kind is None else " (to be asked for)"
        positions = f", positions={finding.positions!r}{asked}" if finding.positions else ""
        tokens = f"{finding.prefix} + {finding.patches} tokens become {finding.prefix} + M"
        return f"{start}; {finding.family}, {finding.blocks} blocks, {tokens}{positions}"
    kind = f" ({finding.kind})" if finding.kind else ""
    way_out = f"; {finding.way_out}" if finding.way_out else ""
    family = f" {finding.family}:" if finding.family else ""
    return f"{start}{kind};{family} {escape(finding.reason or '')}{escape(way_out)}"
