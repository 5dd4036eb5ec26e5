"""What ``patchmerger fewshot`` shows: accuracy of a linear classifier on frozen features, by images a class."""

from __future__ import annotations

from math import log2

from patchmerger.reports.parts import cells, charts, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Cell, Table, print_notes, print_table, report_console


def show(results: Results) -> None:
    """Print the table of ``patchmerger fewshot``."""
    console, images = report_console(), results["images"]
    print_table(console, table(results))
    draws = f"mean ± sd over {results['draws']} draws" if results["draws"] > 1 else "one draw"
    print_notes(
        console,
        results["data"],
        f"{draws} (seed {results['seed']}); strength chosen on {images['validation']:,} validation images, accuracy on "
        f"{images['test']:,} test images; {results['feature_dim']} features of images of {results['image_size']} "
        f"pixels; {sum(results['seconds'].values()):.0f} s on {results['environment']['device_name']}",
    )


def table(results: Results) -> Table:
    """A row for each number of images."""
    rows = []
    for found in results["results"]:
        validation, strengths = found["validation_accuracies"], found["strengths"]
        low, high = (f"2^{log2(strength):g}" for strength in (min(strengths), max(strengths)))
        rows.append([
            cells.number(found["shots"], ".0f"), Cell(_accuracy(found), found["mean"]),
            cells.percent(sum(validation) / len(validation)),
            Cell(low if low == high else f"{low} … {high}", min(strengths)),
        ])  # fmt: skip
    columns = ["images\na class", "test accuracy,\n%", "validation,\n%", "strength\nchosen"]
    note = "The strength of the classifier is chosen on the validation images."
    return Table(f"{numbers.model_name(results['model'])}, few-shot", columns, rows, note)


def _accuracy(found: Results) -> str:
    return numbers.spread_text(found["mean"], found["sd"])


def describe(section: Section, results: Results) -> None:
    """Fill a section with few-shot accuracies."""
    section.title = section.attempt("title", lambda: _title(results), "Few-shot accuracy")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: [
        figures.Figure(f"{100 * found['mean']:.1f}%", f"{found['shots']}-shot") for found in results["results"]
    ])  # fmt: skip
    section.add(section.charts, "accuracy", lambda: _chart(results))
    section.add(section.tables, "table", lambda: table(results))
    names = ("model", "data", "seed", "draws", "strengths", "image_size", "feature_dim")
    section.details["Settings"] = {name.replace("_", " "): str(results[name]) for name in names if name in results}


def _title(results: Results) -> str:
    return f"{numbers.model_name(results['model'])} on {numbers.source_text(results['data'])}, few-shot"


def _verdict(results: Results) -> str:
    most = results["results"][-1]
    return (
        f"From {numbers.counted(most['shots'], 'image')} a class, a linear classifier on the frozen features is right "
        f"on **{_accuracy(most)}%** of {results['images']['test']:,} test images of {results['classes']} classes."
    )


def _chart(results: Results) -> charts.Chart:
    bars = [(f"{found['shots']}-shot", 100 * found["mean"], f"{_accuracy(found)}%") for found in results["results"]]
    draws = f"Mean over {numbers.counted(results['draws'], 'draw')} of training images."
    name = numbers.model_name(results["model"])
    return charts.stages("Accuracy by images a class", {name: bars}, metric="test accuracy", caption=draws)
