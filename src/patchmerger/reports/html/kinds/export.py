"""``patchmerger export``: a model as a file of another runtime, compared with the model itself."""

from __future__ import annotations

from collections.abc import Iterable

from patchmerger.placing.settings import PlacingSettings
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Figure, Section, Table
from patchmerger.reports.numbers import counted, model_name
from patchmerger.runs.serialisation import from_json


def describe(section: Section, results: Results) -> None:
    """Fill a section with the record of an export."""
    section.title = section.attempt("title", lambda: _title(results), "An export")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.figures += section.attempt("figures", lambda: _figures(results), [])
    section.tables += section.attempt("parity", lambda: [_parity(results)], [])
    section.tables += section.attempt("the file", lambda: [_file(results)], [])
    section.remarks += section.attempt("layers in floating point", lambda: _remarks(results["info"]), [])


def _title(results: Results) -> str:
    info = results["info"]
    return f"{model_name(info['model']).removesuffix('/model')} as {info['format']}, {info['precision']}"


def _verdict(results: Results) -> str:
    info, parity = results["info"], results["parity"]
    on = f"{parity['images']} {parity['source']}"
    differ = f"logits that differ from those of the eager model in float32 by **{parity['largest']:.2g}** at most"
    spread = f"{parity['relative']:.2g} of their standard deviation"
    agrees = f"the **same class for {100 * parity['agreement']:.1f}%** and " if parity["real"] else ""
    return f"On {on} the {info['format']} file in {info['precision']} gives {agrees}{differ} ({spread})."


def _figures(results: Results) -> list[Figure]:
    figures = [Figure(f"{results['size'] / 2**20:,.1f} MiB", "on disk")]
    if results["parity"]["real"]:
        figures.append(Figure(f"{100 * results['parity']['agreement']:.1f}%", "the same class as the eager model"))
    figures.append(Figure(f"{results['parity']['largest']:.2g}", "largest difference of a logit"))
    return figures


def _parity(results: Results) -> Table:
    parity, accepted = results["parity"], results["tolerance"]
    rows = [
        ("largest difference of a logit", f"{parity['largest']:.3g}", ""),
        (
            "the same, in standard deviations of the logits",
            f"{parity['relative']:.3g}",
            f"at most {accepted['max_difference']:g}",
        ),
        ("mean difference", f"{parity['mean']:.3g}", ""),
        (
            "same class on top",
            f"{100 * parity['agreement']:.1f}%",
            f"at least {100 * accepted['min_agreement']:g}%" if parity["real"] else "of noise: not required",
        ),
        ("images", f"{parity['images']} {parity['source']}", ""),
        ("sizes of the batches", ", ".join(map(str, parity["batches"])), ""),
        ("image sizes", ", ".join(f"{height} × {width}" for height, width in parity["sizes"]), ""),
        ("run by", str(results["runtime"]), ""),
    ]
    return _table("Compared with the eager model in float32", ["what", "measured", "accepted"], rows)


def _file(results: Results) -> Table:
    info = results["info"]
    step, channels = info["size_step"], info["channels"]
    height, width = info["image_size"] if step is None else ("H", "W")
    batch = "any batch" if info["dynamic_batch"] else "one image a call"
    given = (
        f"pixels, uint8 (B, {height}, {width}, {channels})"
        if info["with_preprocessing"]
        else f"normalised images, float32 (B, {channels}, {height}, {width})"
    )
    gives = "probabilities" if info["with_preprocessing"] else "logits"
    merged = [
        f"{m['reducer']} to {counted(m['num_tokens'], 'token')} after block {m['after']}" for m in info["mergers"]
    ]
    placing = None if info.get("placing") is None else from_json(PlacingSettings, info["placing"])
    known = {name: info[name] for name in ("mean", "std", "crop_pct", "crop_mode", "interpolation") if info[name]}
    rows = [
        ("file", str(results["file"])),
        ("takes", f"{given}; {batch}" + ("" if step is None else f"; H and W are multiples of {step}")),
        ("gives", f"{gives}, float32 (B, {info['num_classes']})"),
        *([] if placing is None else [("places", placing.in_words)]),
        ("merges", "; ".join(merged) or "no"),
        ("preprocessing", ", ".join(f"{name} {_short(value)}" for name, value in known.items()) or "not known"),
        ("class names", _short(info["class_names"]) if info["class_names"] else "not known"),
        ("written by", f"patchmerger {info['patchmerger']}"),
    ]
    return _table("The file", ["what", "as the file says"], rows)


def _remarks(info: Results) -> list[str]:
    if not info["float_layers"]:
        return []
    kept = counted(len(info["float_layers"]), "layer")
    return [f"{kept} stayed in floating point to keep the accuracy: {', '.join(info['float_layers'])}."]


def _table(caption: str, columns: list[str], rows: Iterable[Iterable[str]]) -> Table:
    return Table(caption, columns, [[Cell(text) for text in row] for row in rows])


def _short(value: object) -> str:
    if isinstance(value, list):
        shown = ", ".join(_short(each) for each in value[:8])
        return f"{shown}, … ({len(value)})" if len(value) > 8 else shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)
