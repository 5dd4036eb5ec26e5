"""The page of the evidence: made from the committed results, and never claiming more than their intervals."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from tools.evidence.findings import findings, remarks, verdict
from tools.evidence.page import main, read_results, render
from tools.evidence.studies import STUDIES

ROOT = Path(__file__).parents[2]
SMALL = json.loads((ROOT / "results" / "cifar10-small.json").read_text())


def with_seeds(gaps: dict[str, tuple[float, float]]) -> dict:
    """Results of four seeds whose merged model leads each variant by a mean and a half interval."""
    results = copy.deepcopy(SMALL)
    results["settings"]["seeds"] = 4
    for name, variant in results["variants"].items():
        gap, half = gaps.get(name, (0.0, 0.0))
        variant["metrics"] = [0.9 - gap + half * sign for sign in (-1, 1, -1, 1)]
    merged = results["variants"]["merged"]
    merged["metrics"] = [0.9] * 4
    mean, half = gaps["plain"]
    spread = {"mean": mean, "low": mean - half, "high": mean + half}
    merged["difference"] = {**spread, "over": "seeds", "n": 4, "leaves_out": None}
    return results


def test_the_committed_page_is_made_from_the_committed_results(tmp_path):
    main([str(ROOT / "results"), str(tmp_path / "evidence.md")])
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert (tmp_path / "evidence.md").read_text() == page, "make evidence-page makes it again"


def test_without_results_every_study_is_ready_and_not_run():
    page = render({})
    assert page.count("ready, **not run** |") == len(STUDIES)
    assert page.count("**Ready, not run.**") == len(STUDIES)
    assert read_results(Path("no/such/folder")) == {}


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.file)
def test_what_is_not_run_has_its_config(study):
    words = study.command.split()
    if "--config" in words:
        path = ROOT / words[words.index("--config") + 1]
        assert study.file == path.stem or study.file.startswith(f"{path.stem}-")  # a part, in a file of its own
        settings = yaml.safe_load(path.read_text())
        assert settings.get("models") or settings["data"]["source"]


def test_one_seed_shows_no_accuracy():
    found = {str(finding).split(":")[0]: finding.shown for finding in findings(SMALL)}
    assert found == {
        "At most 0.3 points below plain": False,
        "Trained in at most 0.6 of plain's time": True,
        "Better than average": False,
        "Better than shallow": False,
    }
    assert "so more than that is lost at this scale" in render({"cifar10-small": SMALL})
    assert verdict(SMALL) == "accuracy **not** shown; a training step 1.79 times as fast"


CONTROLS = {"average": (0.02, 0.002), "shallow": (0.02, 0.002)}


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ({"plain": (0.0, 0.002), **CONTROLS}, "**shown**"),
        ({"plain": (0.0, 0.004), **CONTROLS}, "accuracy **not** shown"),
        ({"plain": (0.0, 0.002), **CONTROLS, "average": (0.0, 0.01)}, "accuracy shown"),
    ],
    ids=["all", "interval too wide", "no better than average"],
)
def test_the_claim_is_shown_only_as_a_whole(gaps, expected):
    assert verdict(with_seeds(gaps)).startswith(expected)


def test_without_controls_the_claim_is_not_shown():
    results = with_seeds({"plain": (0.0, 0.002), **CONTROLS})
    del results["variants"]["average"]
    assert verdict(results).startswith("accuracy shown;")
    assert "Without average as a control," in render({"cifar10-small": results})


def test_slower_training_is_not_shown():
    results = with_seeds({"plain": (0.0, 0.002), **CONTROLS})
    next(t for t in results["speed"]["training"]["timings"] if t["name"] == "merged")["speedup"] = 1.5
    assert verdict(results) == "accuracy shown; a training step 1.50 times as fast"
    assert "**not shown**; a training step takes 0.67 of it" in render({"cifar10-small": results})


WIDE = json.loads((ROOT / "results" / "cifar10-width-128.json").read_text())


def test_normalised_values_against_raw_ones_seed_by_seed():
    found = copy.deepcopy(WIDE)
    for name, metrics, validation in (("paper", [0.54, 0.53], [0.5, 0.6]), ("merged", [0.53, 0.5], [0.51, 0.58])):
        found["variants"][name] |= {"metrics": metrics, "history": [[{"val_metric": value}] for value in validation]}
    assert remarks(found)[-1].endswith(
        "on test images +1.00, +3.00: +2.00 [−10.71, +14.71]; "
        "on validation images −1.00, +2.00: +0.50 [−18.56, +19.56]."
    )
    assert not any("Normalised" in remark for remark in remarks(SMALL))


def test_the_rank_of_a_is_its_mean_over_the_seeds():
    found = copy.deepcopy(WIDE)
    found["variants"]["merged"]["merger"] = [{"blocks.3.merger": {"effective_rank": rank}} for rank in (5.0, 7.0)]
    rows = [line.split("|") for line in render({"cifar10-width-128": found}).splitlines() if line.startswith("| ")]
    ranks = {row[1].strip(): row[-2].strip() for row in rows if len(row) == 14}
    assert (ranks["variant"], ranks["plain"], ranks["merged"]) == ("rank of A", "–", "6.0")
    assert "rank of A" not in render({"cifar10-small": SMALL})  # from before A was diagnosed
