"""``python -m tools.budget_runs MODEL --data …``: made faster within a budget of time, once a seed, into one file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from patchmerger import accelerate
from patchmerger.acceleration.settings import PlacementSettings, RecoverySettings
from patchmerger.data import DataSettings
from patchmerger.runs.files import write_json
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.statistics import over_seeds

KEPT = ("command", "settings", "placement", "recovery", "evaluation", "speedup", "seconds")
"""What is kept of each run's own results."""


def main(arguments: Sequence[str] | None = None) -> None:
    """One acceleration after the other: nothing else may run beside them, as what fits in the time is measured."""
    parser = argparse.ArgumentParser(prog="tools.budget_runs", description=__doc__, allow_abbrev=False)
    parser.add_argument("model", type=Path, help="a run of patchmerger fit --merge null")
    parser.add_argument("--data", required=True, help="its images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--budget", default="5min")
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the accelerations")
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    runs = [
        accelerate(
            given.model, DataSettings(given.data), placement=PlacementSettings(given.speedup),
            recovery=RecoverySettings(budget=given.budget), seed=seed, out=given.runs / f"seed-{seed}",
        )
        for seed in range(given.seeds)
    ]  # fmt: skip
    write_json(given.out, {"command": f"python -m tools.budget_runs {' '.join(words)}", **together(runs)})


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The results of one command with several seeds, with what they lose, over the seeds."""
    accuracies = [[run["evaluation"][which]["accuracy"] for run in runs] for which in ("recovered", "plain")]
    return {
        "study": "budget",
        "data": runs[0]["data"],
        "budget": runs[0]["settings"]["recovery"]["budget"],
        "difference": to_json(over_seeds(*accuracies)),
        "runs": [{name: run[name] for name in KEPT} for run in runs],
        "environment": runs[0]["environment"],
    }


if __name__ == "__main__":
    main()
