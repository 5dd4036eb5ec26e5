"""``patchmerger export``: a model as a file of another runtime, compared with the model itself."""

from __future__ import annotations

from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Figure, Section, Table


def describe(section: Section, results: Results) -> None:
    """Fill a section with the record of an export."""
    section.title = section.attempt("title", lambda: _title(results), "An export")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.tables += section.attempt(
        "parity", lambda: [_facts("Compared with the eager model", results["parity"])], []
    )
    section.tables += section.attempt("the file", lambda: [_facts("What the file says of itself", results["info"])], [])


def _title(results: Results) -> str:
    info = results["info"]
    return f"{common.model_name(info['model'])} as {info['format']}, {info['precision']}"


def _verdict(results: Results) -> str:
    info, parity = results["info"], results["parity"]
    agreement = parity.get("agreement")
    agrees = f"the **same class on {100 * agreement:.1f}%** of the images and " if agreement is not None else ""
    return (
        f"The {info['format']} file in {info['precision']} gives {agrees}logits that differ by "
        f"**{parity['largest']:.2g}** at most from those of the eager model."
    )


def _figures(results: Results) -> list[Figure]:
    figures = [Figure(f"{results['size'] / 1e6:,.1f} MB", "file size")]
    if results["parity"].get("agreement") is not None:
        figures.append(Figure(f"{100 * results['parity']['agreement']:.1f}%", "the same class as the eager model"))
    return figures


def _facts(caption: str, found: Results) -> Table:
    rows = [[Cell(key.replace("_", " ")), Cell(_short(value))] for key, value in found.items()]
    return Table(caption, ["what", "value"], rows)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:8]))
        return f"{shown}, … ({len(value)})" if len(value) > 8 else shown or "–"
    return "–" if value is None else str(value)
