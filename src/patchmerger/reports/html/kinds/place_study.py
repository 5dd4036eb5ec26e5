"""``patchmerger place-study``: fewer tokens, placed by several samplers, beside mergers at the same FLOPs."""

from __future__ import annotations

from typing import Any

from patchmerger.reports.html.charts import TokenPoint, accuracy_against_tokens
from patchmerger.reports.html.kinds import common
from patchmerger.reports.html.kinds.common import Results
from patchmerger.reports.html.parts import Cell, Chart, Figure, Section, Table
from patchmerger.reports.numbers import counted, interval_heading, model_text
from patchmerger.reports.placing_study import COLOURS, WORDS, training_text

_ORACLE = "oracle (uses labels)"


def describe(section: Section, results: Results) -> None:
    """Fill a section with the results of a study of placed tokens."""
    section.title = section.attempt("title", lambda: _title(results), "Placed tokens")
    best = section.attempt("verdict", lambda: _best(results), None)
    if best is not None:
        section.verdict = section.attempt("verdict", lambda: _verdict(results, best), "")
        section.figures += section.attempt("figures", lambda: _figures(results, best), [])
        section.remarks += [
            text for text in [section.attempt("interval", lambda: common.over(best["difference"]), "")] if text
        ]
    if any(row.get("oracle") is not None for row in results.get("curves") or ()):
        section.remarks.append(str(results.get("oracle_warning") or "The oracle uses the labels of test images."))
    section.charts += section.attempt("accuracy against tokens", lambda: _charts(results), [])
    section.tables += section.attempt("table", lambda: [_table(results)], [])
    section.tables += section.attempt("speed", lambda: _speed(results), [])


def _title(results: Results) -> str:
    data = common.source_text(results["data"])
    return f"{model_text(results['model'])} on {data}: {counted(len(results['models']), 'trained plain model')}"


def _plain(results: Results) -> float:
    accuracies = [one["accuracy"] for one in results["plain"]]
    return float(sum(accuracies) / len(accuracies))


def _best(results: Results) -> Any:
    """The most accurate row with about half the FLOPs of plain or fewer, else with any that are fewer."""
    fewer = [row for row in results["curves"] if row["flops"] < results["plain_flops"]]
    half = [row for row in fewer if row["flops"] <= 0.6 * results["plain_flops"]]
    return max(half or fewer, key=lambda row: row["accuracy"])


def _name(row: Results) -> str:
    return f"{WORDS.get(row['method'], row['method'])}, {training_text(row)}"


def _verdict(results: Results, row: Results) -> str:
    share = 100 * row["flops"] / results["plain_flops"]
    return (
        f"At **{share:.0f}% of the FLOPs** of plain the most accurate is **{_name(row)}**: "
        f"{common.change(row['difference'])}: {100 * row['accuracy']:.2f}% against {100 * _plain(results):.2f}%. It "
        "was chosen on these test images, so its accuracy is optimistic."
    )


def _figures(results: Results, row: Results) -> list[Figure]:
    return [
        Figure(f"{100 * row['flops'] / results['plain_flops']:.0f}%", "of the FLOPs of plain"),
        Figure(*common.difference_figure(row["difference"], "plain")),
        Figure(f"{100 * row['agreement']:.1f}%", "of images: the same class as plain"),
    ]


def _charts(results: Results) -> list[Chart]:
    """One without training, one after it."""
    return [_chart(results, fine_tuned) for fine_tuned in sorted({row["fine_tuned"] for row in results["curves"]})]


def _chart(results: Results, fine_tuned: bool) -> Chart:
    rows = sorted(
        (row for row in results["curves"] if row["fine_tuned"] == fine_tuned), key=lambda row: row["num_tokens"]
    )
    lines: dict[str, list[TokenPoint]] = {}
    for row in rows:
        share = f"{100 * row['flops'] / results['plain_flops']:.0f}% of the FLOPs of plain"
        sd = None if row["sd"] is None else 100 * row["sd"]
        facts = [share, f"agrees with plain on {100 * row['agreement']:.1f}%"]
        lines.setdefault(row["method"], []).append(TokenPoint(row["num_tokens"], 100 * row["accuracy"], sd, facts))
        if row["oracle"] is not None:
            oracle = TokenPoint(row["num_tokens"], 100 * row["oracle"], None, ["positions fitted by the labels"])
            lines.setdefault(_ORACLE, []).append(oracle)
    colours = {WORDS.get(method, method): colour for method, colour in COLOURS.items()}
    colours[_ORACLE] = COLOURS.get(results["settings"]["sampler"], COLOURS["sobol"])
    epochs = results["settings"]["epochs"]
    return accuracy_against_tokens(
        f"Fine-tuned, {epochs:g} epoch{'' if epochs == 1 else 's'}" if fine_tuned else "Without training",
        {WORDS.get(method, method): points for method, points in lines.items()},
        100 * _plain(results), colours=colours, dashed=[_ORACLE], metric="test accuracy",
        axis="placed tokens, or a merger with their FLOPs",
        caption=f"Mean ± standard deviation of {counted(len(results['models']), 'model')}. The dotted line is plain. "
        "The horizontal axis is logarithmic; the vertical one does not begin at 0.",
    )  # fmt: skip


def _table(results: Results) -> Table:
    curves = sorted(results["curves"], key=lambda row: (-row["fraction"], row["fine_tuned"]))
    first = WORDS.get(results["settings"]["methods"][0], results["settings"]["methods"][0])
    heading = interval_heading("plain", [row["difference"] for row in curves]).replace("\n", " ")
    oracle = any(row["oracle"] is not None for row in curves)
    rows = []
    for row in curves:
        spread = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f}"
        share = 100 * row["flops"] / results["plain_flops"]
        rows.append([
            Cell(WORDS.get(row["method"], row["method"]), None, f"@{COLOURS[row['method']].lstrip('#')}"),
            Cell(str(row["num_tokens"]), row["num_tokens"]), Cell(training_text(row)),
            Cell(f"{100 * row['accuracy']:.2f}{spread}", row["accuracy"]), common.difference_cell(row["difference"]),
            common.difference_cell(row["ahead"]), Cell(f"{share:.0f}", share),
            *([_oracle(row)] if oracle else []),
        ])  # fmt: skip
    columns = ["method", "tokens", "training", "accuracy, %", heading, f"− {first}, points", "FLOPs, % of plain"]
    return Table("All methods", [*columns, "oracle, %"] if oracle else columns, rows)


def _oracle(row: Results) -> Cell:
    if row["oracle"] is None:
        return Cell("–")
    return Cell(f"{100 * row['oracle_initial']:.1f} → {100 * row['oracle']:.1f}", row["oracle"])


def _speed(results: Results) -> list[Table]:
    """The measured speed of each budget, where it was measured."""
    if results["speed"] is None:
        return []
    rows = [
        [Cell(name), common.speed_cell(timing), Cell(f"{timing['predicted_speedup']:.2f}", timing["predicted_speedup"])]
        for name, timing in common.timings_of(results["speed"]).items()
        if name != "plain"
    ]
    note = "A name is the share of tokens and the method; ? marks uncertain ones."
    return [Table("Measured speed, times as fast as plain", ["model", "speed-up", "predicted"], rows, note)]
