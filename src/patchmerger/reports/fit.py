"""What ``patchmerger fit`` and ``patchmerger test`` show: one training run; one evaluation."""

from __future__ import annotations

from patchmerger.reports.parts import charts, figures, numbers
from patchmerger.reports.parts.diagrams import diagram
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import report_console


def show(results: Results) -> None:
    """Print the result of ``patchmerger fit``."""
    console, images = report_console(), results["images"]
    console.print(images["description"])
    for bad in images["skipped"]:
        console.print(f"  left out: {bad}")
    console.print(
        f"test {results['metric']}: [bold]{100 * results['test_metric']:.2f}%[/bold] on {images['test']:,} images; "
        f"{numbers.gflops_text(results['flops'])} GFLOPs an image, {results['params']:,} parameters, "
        f"predicted speed-up {results['predicted_speedup']:.2f}; trained for {results['seconds']:.0f} s "
        f"({results['images_per_second']:,.0f} images/s)"
    )
    console.print(f"Model and logs: {results['folder']}", soft_wrap=True)


def show_evaluation(result: Results) -> None:
    """Print the result of ``patchmerger test``."""
    console = report_console()
    console.print(result["data"])
    for name, value in result.get("per_class", {}).items():
        console.print(f"  {name}: " + ("no images" if value is None else f"{100 * value:.2f}%"))
    console.print(
        f"{result['split']} {result['metric']}: [bold]{100 * result['value']:.2f}%[/bold] "
        f"on {result['images']:,} images"
    )


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a training run."""
    section.title = section.attempt("title", lambda: numbers.run_text(results), "A training run")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.diagrams, "diagram", lambda: diagram("Block by block", results, results["settings"]["model"]))
    section.add(section.charts, "training curve", lambda: _curve(results))


def _verdict(results: Results) -> str:
    what = "merged" if results["mergers"] else "plain"
    return (
        f"The {what} model reaches **{100 * results['test_metric']:.2f}% {results['metric']}** on "
        f"{results['images']['test']:,} test images after {results['seconds']:,.0f} s of training."
    )


def _figures(results: Results) -> list[figures.Figure]:
    found = [
        figures.Figure(f"{100 * results['test_metric']:.2f}%", f"{results['metric']} on test images"),
        figures.Figure(numbers.count_text(results["params"]), "parameters"),
        figures.Figure(numbers.gflops_text(results["flops"]), "GFLOPs an image"),
    ]
    if results["mergers"]:
        found.append(figures.Figure(f"{results['predicted_speedup']:.2f}×", "fewer FLOPs than without a merger"))
    return found


def _curve(results: Results) -> charts.Chart:
    curve = charts.curve("merged" if results["mergers"] else "plain", [results["history"]])
    return charts.training_curves([curve], title="Training curve", metric=f"validation {results['metric']}")
