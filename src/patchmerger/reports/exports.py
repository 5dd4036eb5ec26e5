"""What ``patchmerger export`` shows: where the file is, what it takes and gives, how near it is to the eager model."""

from __future__ import annotations

from rich.console import Console

from patchmerger.exports.exporting import ExportedFile
from patchmerger.exports.metadata import ExportInfo


def show_export(result: ExportedFile) -> None:
    """Print the result of an export."""
    console = Console(highlight=False, soft_wrap=True)
    for line in export_lines(result):
        console.print(line, markup=False)


def export_lines(result: ExportedFile) -> list[str]:
    """The lines that are printed."""
    info, parity = result.info, result.parity
    lines = [f"{result.path}  {result.size / 2**20:,.1f} MiB, {info.format}, {info.precision}", _takes(info)]
    if info.placing is not None:
        lines.append(f"places: {info.placing.in_words}")
    if info.mergers:
        merged = "; ".join(f"{m.reducer} to {m.num_tokens} tokens after block {m.after}" for m in info.mergers)
        lines.append(f"merges: {merged}")
    if info.float_layers:
        lines.append(f"{len(info.float_layers)} layers stayed in floating point: {', '.join(info.float_layers)}")
    batches = ", ".join(map(str, parity.batches))
    sizes = ", ".join(f"{height} × {width}" for height, width in parity.sizes)
    lines += [
        f"compared with the eager model in float32 on {parity.images} {parity.source}, in batches of {batches}, "
        f"of {sizes} pixels:",
        f"  largest difference of a logit  {parity.largest:.3g}  ({parity.relative:.2g} of their standard deviation)",
        f"  mean difference                {parity.mean:.3g}",
        f"  same class on top              {parity.agreement:.1%}"
        + ("" if parity.real else "  (of noise: not required)"),
        f"record: {result.record}",
    ]
    return lines


def _takes(info: ExportInfo) -> str:
    batch = "B" if info.dynamic_batch else "1"
    height, width = info.image_size if info.size_step is None else ("H", "W")
    multiples = "" if info.size_step is None else f" with H and W multiples of {info.size_step}"
    given = (
        f"images uint8 ({batch}, {height}, {width}, {info.channels})"
        if info.with_preprocessing
        else f"images float32 ({batch}, {info.channels}, {height}, {width}), normalised"
    )
    return f"{given}{multiples} → {info.output} float32 ({batch}, {info.num_classes})"
