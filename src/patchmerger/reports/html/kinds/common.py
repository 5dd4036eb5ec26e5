"""What the sections of several commands share: timings, tables of variants, the diagram of a model, details."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from patchmerger.reports.html.charts import Curve, Point
from patchmerger.reports.html.parts import Cell, Diagram, Section, Segment
from patchmerger.reports.numbers import count_text, counted, difference_text, mean_text
from patchmerger.runs.run_folder import flatten

Results = Mapping[str, Any]

SPEED_CAPTION = (
    "Speed: median of the paired ratios of interleaved rounds, bars from quartile to quartile; hollow marks are "
    "uncertain."
)
_ENVIRONMENT = {
    "device_name": "device", "device": "kind of device", "cpu_capability": "vector instructions",
    "cpu_count": "CPUs at hand", "threads": "threads", "load_average": "load of the machine", "platform": "platform",
    "python": "python", "torch": "torch", "timm": "timm", "cuda": "CUDA", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "openvino": "openvino", "nncf": "nncf",
}  # fmt: skip


def timings_of(measured: Results) -> dict[str, Results]:
    """The timings of a measurement by name."""
    return {timing["name"]: timing for timing in measured["timings"]}


def speed_bar(timing: Results) -> tuple[float, float]:
    """How far the quartiles of a speed-up are below and above its median."""
    low, high = timing["ratio_quartiles"]
    return max(timing["speedup"] - 1 / high, 0.0), max(1 / low - timing["speedup"], 0.0)


def times(timing: Results, baseline: str = "plain") -> str:
    """A speed-up in words, with a warning where it is uncertain."""
    uncertain = f" (uncertain: {timing['uncertain']})" if timing["uncertain"] else ""
    return f"**{timing['speedup']:.2f} times as fast** as {baseline}{uncertain}"


def change(difference: Results | None, metric: str = "accuracy") -> str:
    """A paired difference in words: what is shown, the number and its interval."""
    if difference is None:
        return f"its {metric} cannot be compared pair by pair"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    interval = f"95% interval {signed(low)} to {signed(high)}"
    if low > 0:
        return f"**{mean:.2f} points more accurate** ({interval})"
    if high < 0:
        return f"**{-mean:.2f} points less accurate** ({interval})"
    return f"**no difference in {metric} is shown**: {signed(mean)} points ({interval})"


def signed(value: float) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.2f}".replace("-", "−")


def over(difference: Results | None) -> str:
    """What an interval is over, and what it leaves out."""
    if difference is None:
        return ""
    left_out = difference.get("leaves_out")
    text = f"The interval is over {difference['n']:,} {difference['over']}"
    return f"{text}; it leaves out {left_out}: another seed may turn the sign." if left_out else f"{text}."


def difference_figure(difference: Results, against: str) -> tuple[str, str]:
    """A paired difference as value and label of a figure."""
    return signed(100 * difference["mean"]), f"points of accuracy against {against}"


def difference_cell(difference: Results | None) -> Cell:
    """A paired difference with its interval."""
    return Cell(difference_text(difference).replace("-", "−"), None if difference is None else difference["mean"])


def tokens_cell(found: Results) -> Cell:
    """Tokens that go in and, where it merges, come out."""
    merges = found.get("mergers") and found["tokens_out"] != found["tokens_in"]
    text = f"{found['tokens_in']} → {found['tokens_out']}" if merges else str(found["tokens_in"])
    return Cell(text, found["tokens_out"])


def cost_cells(found: Results) -> list[Cell]:
    """Tokens, FLOPs and parameters of a variant."""
    return [
        tokens_cell(found),
        Cell(f"{found['flops'] / 1e9:.3g}", found["flops"]),
        Cell(count_text(found["params"]), found["params"]),
    ]


def metric_cell(found: Results) -> Cell:
    """A metric over the seeds, in per cent."""
    return Cell(mean_text(found), found["metric_mean"])


def speed_cell(timing: Results | None) -> Cell:
    """A measured speed-up, with a question mark where it is uncertain."""
    if timing is None:
        return Cell("–", 0.0)
    return Cell(f"{timing['speedup']:.2f}{'?' if timing['uncertain'] else ''}", timing["speedup"])


def point(name: str, found: Results, timing: Results, *facts: str) -> Point:
    """A variant in accuracy and speed."""
    merged = [f"{m['num_tokens']} tokens after block {m['after']}" for m in found.get("mergers") or ()]
    cost = f"{found['flops'] / 1e9:.3g} GFLOPs, {count_text(found['params'])} parameters"
    sd = found.get("metric_sd")
    return Point(
        name, timing["speedup"], 100 * found["metric_mean"], speed_bar(timing), None if sd is None else 100 * sd,
        bool(timing["uncertain"]), [*facts, *merged, cost],
    )  # fmt: skip


def curve(name: str, history: Sequence[Sequence[Results]]) -> Curve | None:
    """The curve of one variant over its seeds; ``None`` where no validation images were watched."""
    runs = [[100 * row["val_metric"] for row in run] for run in history]
    length = min((len(run) for run in runs), default=0)
    if not length:
        return None
    each = [values[:length] for values in runs]
    columns = list(zip(*each, strict=True))
    epochs = [row["epoch"] for row in history[0][:length]]
    mean = [sum(values) / len(values) for values in columns]
    return Curve(name, epochs, mean, [min(values) for values in columns], [max(values) for values in columns])


def diagram(title: str, found: Results, depth: int | None) -> Diagram | None:
    """The model of a variant block by block; ``None`` for one that does not merge.

    Args:
        title: What it is.
        found: With ``block_tokens``, tokens that enter each block; or with ``mergers``, ``tokens_in`` and
            ``tokens_out``.
        depth: Number of blocks, where it is known.
    """
    if by_block := found.get("block_tokens"):
        segments = _segments([*by_block, found.get("tokens_out", by_block[-1])])
    elif mergers := found.get("mergers"):
        segments = _from_mergers(mergers, found["tokens_in"], found["tokens_out"], depth)
    else:
        return None
    if len(segments) == 1 and segments[0].merges_to is None:
        return None
    places = [f"after block {s.last}, {s.merges_to} of {s.tokens} tokens go on" for s in segments if s.merges_to]
    shown = places if len(places) <= 3 else [places[0], "…", places[-1]]
    caption = f"{segments[0].tokens} tokens enter the first block; {'; '.join(shown)}."
    open_end = "" if segments[-1].last else " How many blocks follow is not in the results."
    return Diagram(title, segments, caption + open_end)


def depth_of(model: Any) -> int | None:
    """The number of blocks that a model's settings name."""
    depth = (model.get("args") or {}).get("depth") if isinstance(model, Mapping) else None
    return depth if isinstance(depth, int) else None


def add_details(section: Section, results: Results) -> None:
    """Settings, versions, device and command, to be folded away."""
    settings = results.get("settings")
    section.command = results.get("command")
    if isinstance(settings, Mapping):
        section.details["Settings"] = {key: _written(value) for key, value in flatten(dict(settings)).items()}
    elif "Settings" not in section.details:
        section.missing.append("settings (the results have none)")
    environment = results.get("environment")
    if isinstance(environment, Mapping):
        section.details["Device and versions"] = {
            name: _written(environment[key]) for key, name in _ENVIRONMENT.items() if environment.get(key) is not None
        }
    elif isinstance(versions := results.get("versions"), Mapping):
        section.details["Versions"] = {name: _written(version) for name, version in versions.items()}
    else:
        section.missing.append("device and versions (the results have none)")
    if section.command is None:
        section.missing.append("the command line (the results have none: they were made in Python)")


def seeds_text(settings: Results) -> str:
    """What a study was trained on, how long, and how often."""
    epochs = (settings.get("training") or {}).get("epochs")
    parts = [counted(epochs, "epoch")] if epochs is not None else []
    parts += [counted(settings["seeds"], "seed")] if settings.get("seeds") is not None else []
    return ", ".join(parts)


def source_text(data: Any) -> str:
    """What data is called: the last part of its path, or its name on the Hub."""
    name = data.get("source") if isinstance(data, Mapping) else str(data).split(":")[0]
    text = str(name)
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", "~", ".")) else text


def _from_mergers(mergers: Iterable[Results], tokens: int, last: int, depth: int | None) -> list[Segment]:
    """Runs of blocks between mergers; how many come out says which tokens stay beside the merged ones."""
    places = sorted(mergers, key=lambda merger: merger["after"])
    beside = last - places[-1]["num_tokens"]
    segments, first = [], 1
    for merger in places:
        out = merger["num_tokens"] + beside
        segments.append(Segment(first, merger["after"], tokens, out))
        first, tokens = merger["after"] + 1, out
    if depth is None or first <= depth:
        segments.append(Segment(first, depth, tokens))
    return segments


def _segments(tokens: Sequence[int]) -> list[Segment]:
    """Runs of blocks that as many tokens enter; the last number is of those that leave the last block."""
    segments, first = [], 1
    for block in range(1, len(tokens)):
        if tokens[block] != tokens[block - 1] or block == len(tokens) - 1:
            merges = tokens[block] if tokens[block] != tokens[block - 1] else None
            segments.append(Segment(first, block, tokens[block - 1], merges))
            first = block + 1
    return segments


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
