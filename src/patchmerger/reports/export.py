"""What ``patchmerger export`` shows: a model as a file of another runtime, compared with the model itself."""

from __future__ import annotations

from patchmerger.placing.settings import PlacingSettings
from patchmerger.reports.parts import cells, figures, numbers
from patchmerger.reports.parts.section import Results, Section
from patchmerger.reports.parts.tables import Table, report_console
from patchmerger.runs.serialisation import from_json


def show(results: Results, where: str) -> None:
    """Print the record of an export.

    Args:
        results: The content of its JSON record.
        where: The path of the exported file, which the record does not know.
    """
    console = report_console()
    lines = [where, _size(results), *_remarks(results)]
    for table in (_file(results), _parity(results)):
        lines.append(f"{table.caption}:")
        for row in table.rows[1 if table.rows[0][0].text == "file" else 0 :]:
            what, value, *accepted = (cell.text for cell in row)
            lines.append(f"  {what:46} {value}{''.join(f' ({text})' for text in accepted if text)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def describe(section: Section, results: Results) -> None:
    """Fill a section with the record of an export."""
    section.title = section.attempt("title", lambda: _title(results), "An export")
    section.verdict = section.attempt("verdict", lambda: _verdict(results), "")
    section.add(section.figures, "figures", lambda: _figures(results))
    section.add(section.tables, "parity", lambda: _parity(results))
    section.add(section.tables, "the file", lambda: _file(results))
    section.add(section.remarks, "layers in floating point", lambda: _remarks(results))


def _title(results: Results) -> str:
    info = results["info"]
    return f"{numbers.model_name(info['model'])} as {info['format']}, {info['precision']}"


def _verdict(results: Results) -> str:
    info, parity = results["info"], results["parity"]
    on = f"{parity['images']} {parity['source']}"
    differ = f"logits that differ from those of the eager model in float32 by **{parity['largest']:.2g}** at most"
    spread = f"{parity['relative']:.2g} of their standard deviation"
    agrees = f"the **same class for {100 * parity['agreement']:.1f}%** and " if parity["real"] else ""
    return f"On {on} the {info['format']} file in {info['precision']} gives {agrees}{differ} ({spread})."


def _figures(results: Results) -> list[figures.Figure]:
    parity = results["parity"]
    same = figures.Figure(f"{100 * parity['agreement']:.1f}%", "the same class as the eager model")
    return [
        figures.Figure(_size(results), "on disk"),
        *([same] if parity["real"] else []),
        figures.Figure(f"{parity['largest']:.2g}", "largest difference of a logit"),
    ]


def _size(results: Results) -> str:
    return f"{results['size'] / 2**20:,.1f} MiB"


def _parity(results: Results) -> Table:
    parity, accepted = results["parity"], results["tolerance"]
    agreement = f"at least {100 * accepted['min_agreement']:g}%" if parity["real"] else "of noise: not required"
    rows = [
        ("largest difference of a logit", f"{parity['largest']:.3g}", ""),
        ("the same, in standard deviations of the logits", f"{parity['relative']:.3g}",
         f"at most {accepted['max_difference']:g}"),
        ("mean difference", f"{parity['mean']:.3g}", ""),
        ("same class on top", f"{100 * parity['agreement']:.1f}%", agreement),
        ("images", f"{parity['images']} {parity['source']}", ""),
        ("sizes of the batches", ", ".join(map(str, parity["batches"])), ""),
        ("image sizes", ", ".join(f"{height} × {width}" for height, width in parity["sizes"]), ""),
        ("run by", str(results["runtime"]), ""),
    ]  # fmt: skip
    return Table("Compared with the eager model in float32", ["what", "measured", "accepted"], cells.texts(rows))


def _file(results: Results) -> Table:
    info = results["info"]
    step, channels = info["size_step"], info["channels"]
    height, width = info["image_size"] if step is None else ("H", "W")
    batch = "any batch" if info["dynamic_batch"] else "one image a call"
    multiples = "" if step is None else f"; H and W are multiples of {step}"
    pixels, known = info["with_preprocessing"], info["preprocessing"] or {}
    given = f"pixels, uint8 (B, {height}, {width}, {channels})"
    if not pixels:
        given = f"normalised images, float32 (B, {channels}, {height}, {width})"
    gives = "probabilities" if pixels else "features" if info.get("gives_features") else "logits"
    merged = [f"{m['reducer']} to {numbers.merges_text([m])}" for m in info["mergers"]]
    placing = None if info.get("placing") is None else from_json(PlacingSettings, info["placing"])
    rows = [
        ("file", str(results["file"])),
        ("takes", f"{given}; {batch}{multiples}"),
        ("gives", f"{gives}, float32 (B, {info['num_classes']})"),
        *([] if placing is None else [("places", placing.in_words)]),
        ("merges", "; ".join(merged) or "no"),
        ("preprocessing", ", ".join(f"{name} {_short(value)}" for name, value in known.items()) or "not known"),
        ("class names", _short(info["class_names"]) if info["class_names"] else "not known"),
        ("written by", f"patchmerger {info['patchmerger']}"),
    ]
    return Table("The file", ["what", "as the file says"], cells.texts(rows))


def _remarks(results: Results) -> list[str]:
    if not (layers := results["info"]["float_layers"]):
        return []
    kept = numbers.counted(len(layers), "layer")
    return [f"{kept} stayed in floating point to keep the accuracy: {', '.join(layers)}."]


def _short(value: object) -> str:
    if isinstance(value, list):
        shown = ", ".join(_short(each) for each in value[:8])
        return f"{shown}, … ({len(value)})" if len(value) > 8 else shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)
