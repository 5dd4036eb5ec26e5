"""Numbers, and what they are of, as tables, pictures and pages have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def count_text(count: int) -> str:
    """A number of parameters, to three digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def counted(count: int, noun: str) -> str:
    """A number and what it counts: "1 seed", "3 seeds"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def mean_text(found: Mapping[str, Any]) -> str:
    """A metric over the seeds in per cent, with its standard deviation where there are several; a dash for none."""
    if found["metric_mean"] is None:
        return "–"
    spread = "" if found["metric_sd"] is None else f" ± {100 * found['metric_sd']:.2f}"
    return f"{100 * found['metric_mean']:.2f}{spread}"


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """A paired difference in points, with its interval."""
    if difference is None:
        return "–"
    mean, low, high = (100 * difference[key] for key in ("mean", "low", "high"))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


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
    return f"These differences leave out {' and '.join(left_out)}: another seed may turn one round."


def speed_text(timing: Mapping[str, Any]) -> str:
    """A measured speed-up, with a question mark where it is uncertain."""
    return f"{timing['speedup']:.2f}{'?' if timing['uncertain'] else ''}"


def uncertain_text(timings: Iterable[tuple[str, Mapping[str, Any]]]) -> str | None:
    """One sentence on the measured speed-ups that are not to be relied on, and why; ``None`` where all are.

    Args:
        timings: What each is of, and its timing as results have it.
    """
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


def model_text(model: Mapping[str, Any] | None) -> str:
    """A model's settings in words: its architecture, and what of it was changed."""
    if model is None:
        return "a model of no known settings"
    names = {
        "img_size": "{} pixels", "patch_size": "patches of {}", "embed_dim": "width {}", "depth": "{} blocks",
        "num_heads": "{} heads",
    }  # fmt: skip
    changed = [names[key].format(value) for key, value in model["args"].items() if key in names]
    name = model["name"] or "the default small ViT"
    return f"{name} ({', '.join(changed)})" if changed else name


def settings_text(settings: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> str:
    """What was trained on what, and for how long, in one line."""
    source = settings["data"]["source"]
    if "downstream" in settings:
        source += f" → {settings['downstream']['source']}"
    epochs, seeds = settings["training"]["epochs"], settings["seeds"]
    trained = f"{counted(epochs, 'epoch')}, {counted(seeds, 'seed')}"
    return f"{source}: {model_text(model or settings['model'])}, {trained}"
