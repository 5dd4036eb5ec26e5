"""What ``patchmerger place-study`` shows: fewer tokens, placed by several samplers, and mergers at their FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.colours import chart_colour
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console
from patchmerger.reports.pictures import place_study as picture
from patchmerger.reports.pictures.place_study import COLOURS, WORDS, training_text

_ORACLE = "oracle (uses labels)"
_SYMBOLS = ("x", "square", "diamond", "triangle-down", "triangle-up", "circle", "cross", "star", "hexagon", "bowtie")


def report(results: Results) -> None:
    """Draw the picture of ``patchmerger place-study`` into its folder, and print the table."""
    picture.draw(results, Path(results["folder"]) / picture.FILE)
    console, curves = report_console(), results["curves"]
    print_table(console, table(results))
    console.print(results["data"], soft_wrap=True)
    if any(row["oracle"] is not None for row in curves):
        images = next(cell["oracle"]["images"] for cell in results["cells"] if cell["oracle"] is not None)
        console.print(f"Oracle: on {images:,} test images. {results['oracle_warning']}", soft_wrap=True)
    for measured in speed_tables(results):
        print_table(console, measured)
    uncertain = numbers.uncertain_text(_timings(results).items())
    left_out = numbers.left_out_text(row["difference"] for row in curves)
    taken_over = numbers.taken_over_text(results)
    print_notes(console, uncertain, left_out, taken_over, f"Results and picture: {results['folder']}")


def table(results: Results) -> Table:
    """A row for each number of tokens, training and method."""
    curves = sorted(results["curves"], key=lambda row: (-row["fraction"], row["fine_tuned"]))
    oracle = any(row["oracle"] is not None for row in curves)
    rows = []
    for row in curves:
        tokens = f"{row['num_tokens']} ({100 * row['fraction']:g}%)"
        rows.append([
            Cell(WORDS[row["method"]], None, chart_colour(COLOURS[row["method"]])), Cell(tokens, row["num_tokens"]),
            Cell("fine-tuned" if row["fine_tuned"] else "not trained"), cells.accuracy(row),
            cells.difference(row["difference"]), cells.difference(row["ahead"]),
            cells.percent(row["flops"] / results["plain_flops"], 0), *([_oracle(row)] if oracle else []),
        ])  # fmt: skip
    heading = numbers.interval_heading("plain", [row["difference"] for row in curves])
    first = WORDS[results["settings"]["methods"][0]]
    columns = ["method", "tokens", "training", "accuracy,\n%", heading, f"− {first},\npoints", "FLOPs,\n% of plain"]
    caption = f"All methods: {numbers.plain_text(results)}"
    return Table(caption, [*columns, "oracle,\n%"] if oracle else columns, rows, keys=3)


def _oracle(row: Results) -> Cell:
    if row["oracle"] is None:
        return Cell("–")
    return Cell(f"{100 * row['oracle_initial']:.1f} → {100 * row['oracle']:.1f}", row["oracle"])


def _timings(results: Results) -> dict[str, Results]:
    """Those of the models that were timed beside plain."""
    timings = {} if results["speed"] is None else numbers.timings_of(results["speed"])
    return {name: timing for name, timing in timings.items() if name != "plain"}


def speed_tables(results: Results) -> list[Table]:
    """The measured speed of each budget, where it was measured."""
    rows = [
        [Cell(name), cells.speed(timing), cells.number(timing["predicted_speedup"])]
        for name, timing in _timings(results).items()
    ]
    note = "A name is the share of tokens and the method; ? marks uncertain ones."
    columns = ["model", "speed-up", "predicted\nby FLOPs"]
    return [Table("Measured speed, times as fast as plain", columns, rows, note)] if rows else []


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of placed tokens."""
    section.title = section.attempt("title", lambda: numbers.models_text(results), "Placed tokens")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.add(section.figures, "figures", lambda: _figures(results, best))
        section.add(section.remarks, "interval", lambda: numbers.over_text(best["difference"]))
    if any(row.get("oracle") is not None for row in results.get("curves") or ()):
        section.remarks.append(str(results.get("oracle_warning") or "The oracle uses the labels of test images."))
    section.add(section.charts, "accuracy against tokens", lambda: _charts(results))
    section.add(section.tables, "table", lambda: table(results))
    section.add(section.tables, "speed", lambda: speed_tables(results))


def _best(results: Results) -> Any:
    """The most accurate row with about half the FLOPs of plain or fewer, else with any that are fewer."""
    fewer = [row for row in results["curves"] if row["flops"] < results["plain_flops"]]
    half = [row for row in fewer if row["flops"] <= 0.6 * results["plain_flops"]]
    return max(half or fewer, key=lambda row: row["accuracy"])


def _verdict(results: Results, row: Results) -> str:
    share, plain = row["flops"] / results["plain_flops"], numbers.plain_accuracy(results)
    name = f"{WORDS[row['method']]}, {'fine-tuned' if row['fine_tuned'] else 'not trained'}"
    return (
        f"At **{100 * share:.0f}% of the FLOPs** of plain the most accurate is **{name}**: "
        f"{numbers.change_text(row['difference'])}: {100 * row['accuracy']:.2f}% against {100 * plain:.2f}%. It was "
        "chosen on these test images, so its accuracy is optimistic."
    )


def _figures(results: Results, row: Results) -> list[figures.Figure]:
    return [
        figures.Figure(f"{100 * row['flops'] / results['plain_flops']:.0f}%", "of the FLOPs of plain"),
        figures.difference(row["difference"]),
        figures.agreement(row["agreement"]),
    ]


def _charts(results: Results) -> list[charts.Chart]:
    """One without training, one after it."""
    return [_chart(results, fine_tuned) for fine_tuned in sorted({row["fine_tuned"] for row in results["curves"]})]


def _chart(results: Results, fine_tuned: bool) -> charts.Chart:
    points = []
    for row in results["curves"]:
        if row["fine_tuned"] == fine_tuned:
            share = f"{100 * row['flops'] / results['plain_flops']:.0f}% of the FLOPs of plain"
            facts = [share, f"agrees with plain on {100 * row['agreement']:.1f}%"]
            sd, name, tokens = row["sd"], WORDS[row["method"]], row["num_tokens"]
            spread = None if sd is None else 100 * sd
            points.append(charts.Point(name, tokens, 100 * row["accuracy"], spread=spread, facts=facts))
            if row["oracle"] is not None:
                facts = ["positions fitted by the labels"]
                points.append(charts.Point(_ORACLE, tokens, 100 * row["oracle"], facts=facts))
    looks = {
        WORDS[method]: (chart_colour(colour), symbol)
        for (method, colour), symbol in zip(COLOURS.items(), _SYMBOLS, strict=True)
    }
    looks[_ORACLE] = looks[WORDS[results["settings"]["sampler"]]]
    title, models = training_text(results, fine_tuned), numbers.counted(len(results["models"]), "model")
    return charts.accuracy_against(
        points, 100 * numbers.plain_accuracy(results), title=title[0].upper() + title[1:], looks=looks,
        dashed=[_ORACLE], axis="placed tokens, or a merger with their FLOPs", across="{:g} tokens", lines=True,
        ticks=True, caption=f"Mean ± standard deviation of {models}. The horizontal axis is logarithmic. "
        f"{charts.AXES_CAPTION}",
    )  # fmt: skip
