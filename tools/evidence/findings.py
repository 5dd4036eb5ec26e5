"""What the results of a study show, by rules that are the same for all: never more than their intervals do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from patchmerger.reports.parts.numbers import difference_text, signed
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import over_seeds
from tools.evidence import accelerations, budgets, patterns, placing
from tools.evidence.studies import EXPECTED

Results = Mapping[str, Any]
_CONTROLS = ("average", "shallow")
_MERGED = ("merged", "heads", "located")


class Kind(Protocol):
    """What the file of a kind has."""

    def verdict(self, found: Results, /) -> str:
        """The result in a few words."""

    def scale(self, found: Results, device: str, /) -> str:
        """How large the study was, in a few words."""

    def conditions(self, found: Results, /) -> str:
        """Data, models and device, in sentences."""

    def table(self, found: Results, /) -> str:
        """The numbers, in Markdown."""

    def remarks(self, found: Results, /) -> Sequence[str]:
        """What a reader must know of the numbers."""


KINDS: Mapping[str, Kind] = {
    "accelerate": accelerations, "budget": budgets, "place": placing, "patterns": patterns
}  # fmt: skip
"""By what their results say they are."""


@dataclass(frozen=True)
class EvidenceFinding:
    """A part of the claim, and whether it is shown.

    Attributes:
        about: The part.
        claim: In words.
        shown: Whether the numbers show it.
        numbers: The numbers.
    """

    about: Literal["accuracy", "time", "controls"]
    claim: str
    shown: bool
    numbers: str

    def __str__(self) -> str:
        """One sentence."""
        return f"{self.claim}: {'shown' if self.shown else '**not shown**'}; {self.numbers}."


def kind_of(found: Results) -> str:
    """The command that made the results: "compare", "sweep", "transfer" or one of those in ``KINDS``."""
    return str(found["study"])


def findings(found: Results) -> list[EvidenceFinding]:
    """The parts of the claim that the study is about; none for a sweep or a study of something else."""
    if not _is_about_the_claim(found):
        return []
    stages = list(_stages(found))
    accuracy = [_accuracy(stage, own, margin) for stage, own, margin in stages]
    controls = [
        _control(control, stage, own, found["variants"][control])
        for stage, own, _ in stages
        for control in _CONTROLS
        if control in found["variants"]
    ]
    return [*accuracy, _time(found), *controls]


def verdict(found: Results) -> str:
    """The claim as a whole, in a few words."""
    if (kind := KINDS.get(kind_of(found))) is not None:
        return kind.verdict(found)
    if kind_of(found) == "sweep":
        failed = f", {len(found['errors'])} runs failed" if found["errors"] else ""
        return f"{len(found['cells'])} mergers{failed}"
    if not _is_about_the_claim(found):
        return "another question"
    parts = findings(found)
    if all(part.shown for part in parts) and found["variants"].keys() >= set(_CONTROLS):
        return "**shown**"
    accuracy = all(part.shown for part in parts if part.about == "accuracy")
    speedup = speedups(found)["training"][_merged(found)]
    return f"accuracy {'' if accuracy else '**not** '}shown; a training step {speedup:.2f} times as fast"


def remarks(found: Results) -> list[str]:
    """What else a reader must know."""
    if (kind := KINDS.get(kind_of(found))) is not None:
        return list(kind.remarks(found))
    if kind_of(found) == "sweep":
        return _sweep_remarks(found)
    lines = []
    if _is_about_the_claim(found):
        missing = [control for control in _CONTROLS if control not in found["variants"]]
        if missing:
            lines.append(
                f"Without {' and '.join(missing)} as {'controls' if len(missing) > 1 else 'a control'}, "
                "nothing is to be credited to what merging learns."
            )
    if found["settings"]["seeds"] == 1:
        lines.append("One seed: the interval leaves out training noise.")
    if kind_of(found) == "compare" and found["variants"].keys() >= {"merged", "paper"}:
        lines.append(_values(found))
    return lines


def speedups(found: Results) -> dict[str, dict[str, float]]:
    """Measured speed-ups of the variants, by "inference" and "training"."""
    return {mode: {t["name"]: t["speedup"] for t in measured["timings"]} for mode, measured in found["speed"].items()}


def _is_about_the_claim(found: Results) -> bool:
    known = kind_of(found) in ("compare", "transfer")
    return known and found["baseline"] == "plain" and any(name in found["variants"] for name in _MERGED)


def _merged(found: Results) -> str:
    """The variant that the claim is about."""
    return next(name for name in _MERGED if name in found["variants"])


def _stages(found: Results) -> Iterator[tuple[str, Results, float]]:
    """Of the merged model: the name of the stage ("" for the only one), what it gave, and the margin."""
    merged = found["variants"][_merged(found)]
    if kind_of(found) != "transfer":
        yield "", merged, EXPECTED.margin
        return
    for stage, own in merged["stages"].items():
        yield stage, own, EXPECTED.few_shot_margin if stage.endswith("-shot") else EXPECTED.margin


def _accuracy(stage: str, own: Results, margin: float) -> EvidenceFinding:
    claim = f"At most {100 * margin:g} points below plain{f', {stage}' if stage else ''}"
    difference = own["difference"]
    if difference is None:
        return EvidenceFinding("accuracy", claim, False, "there is nothing to pair")
    numbers = f"{difference_text(difference)} points over {difference['n']:,} {difference['over']}"
    if difference["high"] < -margin:
        numbers += ", so more than that is lost at this scale"
    shown = difference["low"] >= -margin and difference["over"] == "seeds"
    return EvidenceFinding("accuracy", claim, shown, numbers)


def _time(found: Results) -> EvidenceFinding:
    faster = {mode: of[_merged(found)] for mode, of in speedups(found).items()}
    share = 1 / faster["training"]
    numbers = f"a training step takes {share:.2f} of it, inference {1 / faster['inference']:.2f}"
    claim = f"Trained in at most {EXPECTED.training_time:g} of plain's time"
    return EvidenceFinding("time", claim, share <= EXPECTED.training_time, numbers)


def _control(control: str, stage: str, merged: Results, variant: Results) -> EvidenceFinding:
    ours: Sequence[float] = merged["metrics"]
    theirs: Sequence[float] = (variant["stages"][stage] if stage else variant)["metrics"]
    claim = f"Better than {control}{f', {stage}' if stage else ''}"
    if len(ours) < 2:
        return EvidenceFinding("controls", claim, False, f"{signed(100 * (ours[0] - theirs[0]))} points, of one seed")
    difference = over_seeds(ours, theirs)
    return EvidenceFinding("controls", claim, difference.low > 0, f"{difference_text(to_json(difference))} points")


def _values(found: Results) -> str:
    """What normalising the values as well (the paper's printed setting) changes."""
    ours, theirs = found["variants"]["paper"], found["variants"]["merged"]
    on_test = _gaps(ours["metrics"], theirs["metrics"])
    on_validation = _gaps(*([run[-1]["val_metric"] for run in own["history"]] for own in (ours, theirs)))
    return (
        "Normalised values (paper) against raw ones (merged), seed by seed, in points: "
        f"on test images {on_test}; on validation images {on_validation}."
    )


def _gaps(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The difference of each seed, and of several their mean with its interval."""
    each = ", ".join(signed(100 * (a - b)) for a, b in zip(ours, theirs, strict=True))
    return each if len(ours) < 2 else f"{each}: {difference_text(to_json(over_seeds(ours, theirs)))}"


def _sweep_remarks(found: Results) -> list[str]:
    lines = [f"{unit} failed: {error}." for unit, error in found["errors"].items()]
    trained = {name: cell for name, cell in found["cells"].items() if cell["metric_mean"] is not None}
    if not trained:
        return lines
    best = max(trained, key=lambda name: float(trained[name]["metric_mean"]))
    lines.append(f"Most accurate: `{best}`, {difference_text(trained[best]['difference'])} points to plain.")
    known = {name: cell["difference"] for name, cell in trained.items() if cell["difference"] is not None}
    kept = [f"`{name}`" for name, difference in known.items() if difference["low"] >= -EXPECTED.margin]
    lines.append(
        f"At most {100 * EXPECTED.margin:g} points below plain with the interval: {', '.join(kept) or 'none'}."
    )
    lines.append("The best of many looks better than it is: what is chosen here is to be tested by a study of its own.")
    if found["settings"]["seeds"] == 1:
        lines.append("One seed: intervals are over test images and leave out training noise.")
    return lines
