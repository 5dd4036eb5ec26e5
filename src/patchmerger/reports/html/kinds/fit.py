"""``patchmerger fit``: one training run."""

from __future__ import annotations

from patchmerger.reports.html.charts import training_curves
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Chart, Diagram, Figure, Section
from patchmerger.reports.numbers import count_text, counted, model_text


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a training run."""
    section.title = section.attempt("title", lambda: _title(results), "A training run")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.diagrams += section.attempt("diagram of the model", lambda: _diagrams(results), [])
    section.charts += section.attempt("training curve", lambda: [_curve(results)], [])


def _title(results: Results) -> str:
    settings = results["settings"]
    epochs = counted(settings["training"]["epochs"], "epoch")
    return f"{model_text(settings['model'])} on {common.source_text(settings['data'])}: {epochs}"


def _verdict(results: Results) -> str:
    what = "merged" if results["mergers"] else "plain"
    return (
        f"The {what} model reaches **{100 * results['test_metric']:.2f}% {results['metric']}** on "
        f"{results['images']['test']:,} test images after {results['seconds']:,.0f} s of training."
    )


def _figures(results: Results) -> list[Figure]:
    figures = [
        Figure(f"{100 * results['test_metric']:.2f}%", f"{results['metric']} on test images"),
        Figure(count_text(results["params"]), "parameters"),
        Figure(f"{results['flops'] / 1e9:.3g}", "GFLOPs an image"),
    ]
    if results["mergers"]:
        figures.append(Figure(f"{results['predicted_speedup']:.2f}×", "fewer FLOPs than without a merger"))
    return figures


def _diagrams(results: Results) -> list[Diagram]:
    found = common.diagram("Block by block", results, common.depth_of(results["settings"]["model"]))
    return [] if found is None else [found]


def _curve(results: Results) -> Chart:
    name = "merged" if results["mergers"] else "plain"
    curve = common.curve(name, [results["history"]])
    if curve is None:
        raise ValueError("there were no validation images")
    caption = "On validation images, after each epoch. The vertical axis does not begin at 0."
    return training_curves("Training curve", [curve], metric=f"validation {results['metric']}", caption=caption)
