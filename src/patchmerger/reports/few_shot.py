"""What ``patchmerger fewshot`` prints."""

from __future__ import annotations

from math import log2

from patchmerger.fewshot.results import FewShot
from patchmerger.reports.tables import new_table, print_table, report_console


def show_few_shot(result: FewShot) -> None:
    """Print the table of ``patchmerger fewshot``."""
    console = report_console()
    console.print(result.data)
    columns = ("images\na class", "test accuracy\n%", "validation\n%", "strength chosen")
    table = new_table([], columns, title=result.model)
    for r in result.results:
        spread = "" if r.sd is None else f" ± {100 * r.sd:.2f}"
        low, high = (f"2^{log2(strength):g}" for strength in (min(r.strengths), max(r.strengths)))
        table.add_row(
            str(r.shots),
            f"{100 * r.mean:.2f}{spread}",
            f"{100 * sum(r.validation_accuracies) / result.draws:.2f}",
            low if low == high else f"{low} … {high}",
        )
    print_table(console, table)
    images = result.images
    console.print(
        f"{f'mean ± sd over {result.draws} draws' if result.draws > 1 else 'one draw'} (seed {result.seed}); strength "
        f"chosen on {images['validation']:,} validation images, accuracy on {images['test']:,} test images; "
        f"{result.feature_dim} features of images of {result.image_size} pixels; "
        f"{sum(result.seconds.values()):.0f} s on {result.environment['device_name']}"
    )
