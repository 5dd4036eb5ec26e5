"""Numbers, and what they are of, in the words that tables, pictures and pages have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from patchmerger.reducers.names import METHODS
from patchmerger.runs.text import significant, some_of

METHOD_WORDS = {
    "plain": "plain, trained on", "cut": "fewer blocks", "regions": "fixed regions", "located": "located queries",
    "soft": "queries from clusters", "random": "random queries", "average": "average pooling",
    "random-drop": "dropped at random",
}  # fmt: skip
"""What the methods are called that have more of a name than their own."""


def method_text(method: str) -> str:
    """A method's name in words."""
    known = METHODS.get(method)
    return METHOD_WORDS.get(method) or (method if known is None else known.title)


def count_text(count: int) -> str:
    """A number of parameters, to three digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * size:  # what three digits round to one of the unit
            return f"{count / size:.3g}{unit}"
    return str(count)


def gflops_text(flops: float) -> str:
    """FLOPs in GFLOPs, to three digits."""
    return significant(flops / 1e9)


def counted(count: int, noun: str) -> str:
    """A number and what it counts: "1 seed", "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def epochs_text(epochs: float) -> str:
    """A length in epochs: whole ones from ten on, else two digits."""
    text = f"{epochs:.2g}" if epochs < 10 else f"{epochs:,.0f}"
    return f"{text} epoch{'' if text == '1' else 's'}"


def spread_text(mean: float, sd: float | None) -> str:
    """A mean in per cent, with its standard deviation where there is one."""
    return f"{100 * mean:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def mean_text(found: Mapping[str, Any]) -> str:
    """A metric over the seeds in per cent, with its standard deviation where there are several; a dash for none."""
    return "–" if found["metric_mean"] is None else spread_text(found["metric_mean"], found["metric_sd"])


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """A paired difference in points, with its interval."""
    if difference is None:
        return "–"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def shown_text(difference: Mapping[str, Any]) -> str:
    """What the interval of a paired difference shows; one that holds 0 does not show that there is no difference."""
    if difference["low"] > 0:
        return "more accurate"
    return "less accurate" if difference["high"] < 0 else "no difference shown"


def interval_heading(baseline: str, differences: Iterable[Mapping[str, Any] | None]) -> str:
    """The heading of a column of differences, which says what the intervals leave out."""
    left_out = {difference["leaves_out"] for difference in differences if difference is not None} - {None}
    return f"− {baseline}, points\n[95% interval{', one seed' if left_out else ''}]"


def left_out_text(differences: Iterable[Mapping[str, Any] | None]) -> str | None:
    """One sentence on what the intervals leave out; ``None`` where they leave out nothing."""
    left_out = sorted({d["leaves_out"] for d in differences if d is not None and d["leaves_out"] is not None})
    if not left_out:
        return None
    return f"These differences leave out {' and '.join(left_out)}: another seed may reverse one."


def taken_over_text(results: Mapping[str, Any]) -> str | None:
    """What a study did not do itself, and where that was made; ``None`` where it did all."""
    taken: Mapping[str, str] = results.get("taken_over") or {}
    if not taken:
        return None
    return (
        f"Taken over, not made again: {counted(len(taken), 'result')} from {some_of(sorted(set(taken.values())), 3)}; "
        "how long they took may be of another machine."
    )


def signed(value: float) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.2f}".replace("-", "−")


def change_text(difference: Mapping[str, Any] | None, metric: str = "accuracy") -> str:
    """A paired difference in a sentence: what is shown, the number and its interval."""
    if difference is None:
        return f"its {metric} cannot be compared pair by pair"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    interval = f"95% interval {signed(low)} to {signed(high)}"
    if low > 0:
        return f"**{mean:.2f} points more accurate** ({interval})"
    if high < 0:
        return f"**{-mean:.2f} points less accurate** ({interval})"
    return f"**no difference in {metric} is shown**: {signed(mean)} points ({interval})"


def over_text(difference: Mapping[str, Any] | None) -> str:
    """What an interval is over, and what it leaves out; nothing where there is none."""
    if difference is None:
        return ""
    left_out = difference.get("leaves_out")
    text = f"The interval is over {difference['n']:,} {difference['over']}"
    return f"{text}; it leaves out {left_out}: another seed may reverse it." if left_out else f"{text}."


def plain_accuracy(results: Mapping[str, Any]) -> float:
    """The mean over the plain models of a study."""
    accuracies = [one["accuracy"] for one in results["plain"]]
    return float(sum(accuracies) / len(accuracies))


def plain_text(results: Mapping[str, Any]) -> str:
    """What the accuracies of a study of trained models are held against."""
    models = counted(len(results["models"]), "model")
    return f"test accuracy; that of plain is {100 * plain_accuracy(results):.2f}% ({models})"


def timings_of(measured: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The timings of a measurement by name."""
    return {timing["name"]: timing for timing in measured["timings"]}


def speed_bar(timing: Mapping[str, Any]) -> tuple[float, float]:
    """How far the quartiles of a speed-up are below and above its median."""
    low, high = timing["ratio_quartiles"]
    return max(timing["speedup"] - 1 / high, 0.0), max(1 / low - timing["speedup"], 0.0)


def times_text(timing: Mapping[str, Any], baseline: str = "plain") -> str:
    """A speed-up in a sentence, with a warning where it is uncertain."""
    uncertain = f" (uncertain: {timing['uncertain']})" if timing["uncertain"] else ""
    return f"**{timing['speedup']:.2f} times as fast** as {baseline}{uncertain}"


def speed_text(timing: Mapping[str, Any]) -> str:
    """A measured speed-up, with a question mark where it is uncertain."""
    return f"{timing['speedup']:.2f}{'?' if timing['uncertain'] else ''}"


def uncertain_text(timings: Iterable[tuple[str, Mapping[str, Any]]]) -> str | None:
    """One sentence on measured speed-ups, by name, that are not to be relied on, and why; ``None`` where all are."""
    names: dict[str, list[str]] = {}
    for name, timing in timings:
        if reason := timing["uncertain"]:
            names.setdefault(reason, []).append(name)
    if not names:
        return None
    listed = [f"{', '.join(of)} ({reason})" for reason, of in names.items()]
    return f"Uncertain speed-ups: {'; '.join(listed)}."


def model_name(model: object) -> str:
    """What a model is called: the last part of a path that says something."""
    text = str(model)
    if text.endswith("/model"):
        return model_name(text.removesuffix("/model").rstrip("/").rsplit("/", 1)[-1] or text[1:])
    if not text.startswith(("/", "~", ".")):
        return text
    parts = [part for part in text.split("/") if part and part != "model"]
    return parts[-1] if parts else text


def model_text(model: Mapping[str, Any] | None, init: str | None = None) -> str:
    """A model's settings in words: its architecture, or what it starts from, and what of it was changed."""
    if model is None:
        return "a model of no known settings"
    names = {
        "img_size": "{} pixels", "patch_size": "patches of {}", "embed_dim": "width {}", "depth": "{} blocks",
        "num_heads": "{} heads",
    }  # fmt: skip
    changed = [names[key].format(value) for key, value in model["args"].items() if key in names]
    if init is not None:
        return ", ".join([f"trained weights ({source_text(init)})", *changed])
    name = model["name"] or "the default small ViT"
    return f"{name} ({', '.join(changed)})" if changed else name


def merges_text(mergers: Iterable[Mapping[str, Any]]) -> str:
    """Where is merged, and to how many tokens."""
    return " and ".join(f"{counted(merger['num_tokens'], 'token')} after block {merger['after']}" for merger in mergers)


def source_text(data: Any) -> str:
    """What data is called: the last part of its path, or its name on the Hub."""
    text = str(data.get("source") if isinstance(data, Mapping) else str(data).split(":")[0])
    return text.rstrip("/").rsplit("/", 1)[-1] if text.startswith(("/", "~", ".")) else text


def uncertain_modes(results: Mapping[str, Any]) -> str | None:
    """The uncertain speed-ups of a study that measures its variants in several modes."""
    return uncertain_text(
        (f"{name} in {mode}", timing)
        for mode, measured in results["speed"].items()
        for name, timing in timings_of(measured).items()
        if name != results["baseline"]
    )


def models_text(results: Mapping[str, Any]) -> str:
    """What a study of trained models is of."""
    models = counted(len(results["models"]), "trained plain model")
    return f"{model_text(results['model'])} on {source_text(results['data'])}: {models}"


def run_text(results: Mapping[str, Any]) -> str:
    """What was trained, on what, for how long and how often."""
    settings = results["settings"]
    model = model_text(results.get("model") or settings["model"], results.get("init"))
    return f"{model} on {sources_text(settings)}: {budget_text(settings)}"


def sources_text(settings: Mapping[str, Any]) -> str:
    """What data a study is on: of a transfer both."""
    return " → ".join(source_text(settings[name]) for name in ("data", "downstream") if name in settings)


def budget_text(settings: Mapping[str, Any]) -> str:
    """How long was trained, and how often."""
    epochs, seeds = (settings.get("training") or {}).get("epochs"), settings.get("seeds")
    named = ((epochs, "epoch"), (seeds, "seed"))
    return ", ".join(counted(count, noun) for count, noun in named if count is not None)
