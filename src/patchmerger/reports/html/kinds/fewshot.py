"""``patchmerger fewshot``: accuracy of a linear classifier on frozen features, by images a class."""

from __future__ import annotations

from patchmerger.reports.html.charts import stages
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Figure, Section, Table
from patchmerger.reports.numbers import counted, model_name


def describe(section: Section, results: Results) -> None:
    """Fill a section with few-shot accuracies."""
    section.title = section.attempt("title", lambda: _title(results), "Few-shot accuracy")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.charts += section.attempt("accuracy", lambda: [_chart(results)], [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])
    names = ("model", "data", "seed", "draws", "strengths", "image_size", "feature_dim")
    section.details["Settings"] = {name.replace("_", " "): str(results[name]) for name in names if name in results}


def _title(results: Results) -> str:
    return f"{model_name(results['model'])} on {common.source_text(results['data'])}, few-shot"


def _accuracy(found: Results) -> str:
    spread = "" if found["sd"] is None else f" ± {100 * found['sd']:.2f}"
    return f"{100 * found['mean']:.2f}{spread}"


def _verdict(results: Results) -> str:
    most = results["results"][-1]
    return (
        f"From {counted(most['shots'], 'image')} a class, a linear classifier on the frozen features is right on "
        f"**{_accuracy(most)}%** of {results['images']['test']:,} test images of {results['classes']} classes."
    )


def _figures(results: Results) -> list[Figure]:
    return [Figure(f"{100 * found['mean']:.1f}%", f"{found['shots']}-shot") for found in results["results"]]


def _chart(results: Results) -> Chart:
    bars = [(f"{found['shots']}-shot", 100 * found["mean"], f"{_accuracy(found)}%") for found in results["results"]]
    draws = f"Mean over {counted(results['draws'], 'draw')} of training images."
    name = model_name(results["model"])
    return stages("Accuracy by images a class", {name: bars}, metric="test accuracy", caption=draws)


def _table(results: Results) -> Table:
    rows = []
    for found in results["results"]:
        validation = sum(found["validation_accuracies"]) / len(found["validation_accuracies"])
        rows.append([
            Cell(str(found["shots"]), found["shots"]), Cell(_accuracy(found), found["mean"]),
            Cell(f"{100 * validation:.2f}", validation),
        ])  # fmt: skip
    note = "The strength of the classifier is chosen on the validation images."
    return Table("By images a class", ["images a class", "test accuracy, %", "validation, %"], rows, note)
