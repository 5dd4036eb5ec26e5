"""What a command with a budget of time shows: what trained models lose, and how long it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchmerger.reducers.names import METHODS, placement_in_words
from patchmerger.reports.parts.numbers import counted, difference_text
from tools.markdown import markdown_table

Results = Mapping[str, Any]
_HEAD = (
    "run", "merged", "fewer FLOPs, times", "inference, times as fast", "plain, %",
    "before recovery, %", "accuracy, %", "− plain, points [95% interval]", "agreement, %", "test images", "views kept",
    "recovery in", "time, min",
)  # fmt: skip
_FORMATS = {"32-true": "float32", "bf16-mixed": "bf16"}


def together(runs: Sequence[Results]) -> Results:
    """The results of runs of ``patchmerger accelerate``, as those of one study."""
    first = runs[0]
    return {
        "study": "budget",
        "command": first["command"],
        "data": first["data"],
        "budget": first["settings"]["recovery"]["budget"],
        "runs": runs,
        "environment": first["environment"],
    }


def verdict(found: Results) -> str:
    """In a few words: what is lost by each method, and the longest time."""
    lost = [
        f"{METHODS[run['placement']['reducer']].title} {difference_text(run['evaluation']['recovered']['difference'])}"
        for run in found["runs"]
    ]
    fewer = min(run["speedup"]["predicted"] for run in found["runs"])
    longest = max(run["seconds"] for run in found["runs"]) / 60
    return f"{', '.join(lost)} points at {fewer:.2f} times fewer FLOPs; at most {longest:.1f} minutes in all"


def scale(found: Results, device: str) -> str:
    """Images, budget, models, runs and device."""
    images, runs = found["data"].split(":")[0].rsplit("/", 1)[-1], found["runs"]
    models = counted(len({run["settings"]["model"] for run in runs}), "model")
    return f"{images}, {found['budget']} of recovery, {models}, {counted(len(runs), 'run')}, {device}"


def conditions(found: Results) -> str:
    """Data and device."""
    where = found["environment"]
    return f"{found['data']}. On {where['device_name']}, torch {where['torch']}, timm {where['timm']}."


def table(found: Results) -> str:
    """A row for each run."""
    rows = []
    for number, run in enumerate(found["runs"]):
        plain, before, after = (run["evaluation"][name] for name in ("plain", "initialised", "recovered"))
        kept = run["recovery"]["phases"]["rear"]["kept"]
        place = run["placement"]
        rows.append([
            str(number + 1), placement_in_words(place["reducer"], place["num_tokens"], place["after"]),
            f"{run['speedup']['predicted']:.2f}", f"{run['speedup']['measured']:.2f}",
            *(f"{100 * one['accuracy']:.2f}" for one in (plain, before, after)), difference_text(after["difference"]),
            f"{100 * after['agreement']:.1f}", f"{after['images']:,}", f"{kept['views']:,}",
            _FORMATS[run["recovery"]["precision"]], f"{run['seconds'] / 60:.1f}",
        ])  # fmt: skip
    return markdown_table(_HEAD, rows, range(2, len(_HEAD)))


def remarks(_: Results) -> Sequence[str]:
    """What a reader must know of the numbers."""
    return [
        "Intervals are over the test images, and leave out training noise. The time is that of the whole command: "
        "placement, queries, keeping tokens, training, evaluation, speed."
    ]
