"""The study of placed tokens: a grid of cells, each kept, with mergers at the same FLOPs and the oracle beside it."""

import json
import shutil

import pytest
from tools.evidence.page import render

from conftest import make_vit
from patchmerger import fit, insert, place
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.costs import cost
from patchmerger.models.settings import ModelSettings
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Source
from patchmerger.reports.pictures.place_study import FILE
from patchmerger.reports.place_study import report
from patchmerger.runs.files import read_json, write_json
from patchmerger.studies import placing_study
from patchmerger.studies.placing_budgets import budget_of
from patchmerger.studies.placing_study import place_study
from patchmerger.studies.trained_models import trained_models
from patchmerger.studies.trained_settings import PlacingStudySettings
from patchmerger.training.settings import Recipe, TrainingSettings

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
QUICK = {
    "fractions": [1.0, 0.5], "methods": ["subset", "sobol", "learned", "merger", "placed-merger"],
    "fine_tuned": ["subset", "placed-merger"], "epochs": 0.2, "oracle_images": 20, "oracle_steps": 2,
    "recovery": RecoverySettings(batch_size=64, accelerator="cpu"), "calibration_images": 32, "rounds": 1,
    "speed_batch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    training = TrainingSettings(epochs=2, batch_size=128, warmup_epochs=0, accelerator="cpu")
    fit(
        Recipe(model=ModelSettings("vit_tiny_patch16_224", TINY), merge=None, training=training),
        out=out,
        progress=False,
    )
    return out


@pytest.fixture(scope="module")
def study(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study"
    return place_study(PlacingStudySettings([trained], **QUICK), out=out, progress=False), out


def test_a_grid_is_evaluated_and_shown(study, trained, capsys):
    results, out = study
    found = {(c["method"], c["fraction"], c["fine_tuned"]): c for c in results["curves"]}
    placed = {(m, f, False) for m in ("subset", "sobol", "learned") for f in (1.0, 0.5)}
    merged = {("merger", 0.5, False), ("placed-merger", 0.5, False), ("placed-merger", 0.5, True)}
    assert set(found) == placed | merged | {("subset", fraction, True) for fraction in (1.0, 0.5)}
    plain = json.loads((trained / "results.json").read_text())["test_metric"]
    assert results["plain"][0]["accuracy"] == pytest.approx(plain)
    assert found["subset", 1.0, False]["accuracy"] == pytest.approx(plain)
    assert found["learned", 1.0, False]["agreement"] == 1.0
    assert found["sobol", 0.5, False]["ahead"]["mean"] == pytest.approx(
        found["sobol", 0.5, False]["accuracy"] - found["subset", 0.5, False]["accuracy"]
    )
    assert found["sobol", 0.5, False]["num_tokens"] == 8
    budget = found["sobol", 0.5, False]["flops"]
    for method in ("merger", "placed-merger"):
        assert 0.7 * budget < found[method, 0.5, False]["flops"] <= budget
    oracles = [c["oracle"] for c in results["cells"] if c["method"] == "sobol"]
    assert all(o["images"] == 20 and o["accuracy"] >= o["initial_accuracy"] for o in oracles)
    assert all(c["oracle"] is None for c in results["cells"] if c["method"] != "sobol")
    steps = {c["steps"] for c in results["cells"] if c["fine_tuned"]}
    assert len(steps) == 1
    assert min(steps) > 0
    page = render({"place-vit-small-cifar10": {**results, "command": "patchmerger place-study"}})
    assert "merging at the same FLOPs in" in page
    assert page.count("| fine-tuned |") == 3
    report(results)
    assert (out / FILE).stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "uses the labels" in printed
    assert "patches dropped at random" in printed
    section = section_of(Source(out, results))
    assert (section.kind, len(section.charts), len(section.tables)) == ("place-study", 2, 2)
    assert len(section.tables[0].rows) == len(results["curves"])
    assert f"**{100 * budget / results['plain_flops']:.0f}% of the FLOPs**" in section.verdict
    assert section.missing == ["the command line (the results have none: they were made in Python)"]


def test_what_is_done_is_kept_when_a_study_resumes(study, trained):
    results, out = study
    (out / "results.json").rename(out / "before.json")
    cell = out / "model-0" / "0.5-subset-untrained.json"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("model-*/*.json") if path != cell}
    cell.unlink()
    again = place_study(PlacingStudySettings([trained], **QUICK), out=out, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again["curves"] == results["curves"]


def test_a_study_grows_and_does_only_what_is_new(study, trained, tmp_path, monkeypatch):
    results, out = study
    changes = {"fractions": [0.5, 0.25], "methods": ["sobol", "subset"], "fine_tuned": ["subset"]}
    evaluated = []

    def count(self, cell):
        evaluated.append(cell.name)
        return evaluate(self, cell)

    evaluate = placing_study._Study.evaluated
    monkeypatch.setattr(placing_study._Study, "evaluated", count)
    grown = PlacingStudySettings([trained], **{**QUICK, **changes})
    found = place_study(grown, out=tmp_path / "grown", reuse=out, progress=False)
    assert sorted(evaluated) == [
        f"model-0/0.25-{name}" for name in ("sobol-untrained", "subset-fine-tuned", "subset-untrained")
    ]
    before = {(c["method"], c["fraction"], c["fine_tuned"]): c["accuracy"] for c in results["cells"]}
    for cell in found["cells"]:
        if cell["fraction"] == 0.5:
            assert cell["accuracy"] == before[cell["method"], 0.5, cell["fine_tuned"]]
    assert len(found["taken_over"]) == 3


def test_mergers_stay_within_the_flops_of_the_placed_tokens(vit):
    settings = PlacingStudySettings(["a"])
    assert budget_of(vit, 1.0, settings).merges == {}
    budget = budget_of(vit, 0.5, settings)
    assert (budget.num_tokens, budget.flops) == (8, cost(place(make_vit(), 8)).flops)
    merge = budget.merges["placed-merger"]
    assert (merge.after, merge.num_tokens) == (2, 2)
    flops = [cost(insert(place(make_vit(), n), 2, 2)).flops for n in (merge.num_placed, merge.num_placed + 1)]
    assert flops[0] <= budget.flops < flops[1]
    merge = budget.merges["merger"]
    assert merge.num_placed == 16
    assert cost(insert(make_vit(), merge.num_tokens, merge.after)).flops <= budget.flops


def test_a_run_whose_images_were_swapped_since_is_named(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    results = read_json(run / "results.json")
    write_json(run / "results.json", results | {"images": results["images"] | {"content": "of others"}})
    with pytest.warns(UserWarning, match=r"run was trained on other images, .* data \(digits\) .*: put them back"):
        trained_models([run])
    write_json(run / "results.json", results | {"images": {}})  # an older run does not say
    trained_models([run])


def test_fewer_test_images_count_where_that_is_asked_for(trained):
    (model,), (whole,) = trained_models([trained], 40), trained_models([trained])
    assert len(model.images.test) == 40
    assert len(whole.images.test) > 300
    assert set(model.images.test.rows) < set(whole.images.test.rows)
    assert model.images.train.rows == whole.images.train.rows
    assert "40 of the test images count" in model.images.description
    with pytest.raises(ValueError, match=r"test_images \(9,999\) are more than there are"):
        trained_models([trained], 9999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"test_images": 0}, r"test_images \(0\)"),
        ({"fractions": [1.5]}, r"fractions \(\[1.5\]\)"),
        ({"methods": ["halton"]}, r"methods \('halton'\) must be among grid, center"),
        ({"methods": ["given"]}, r"methods \('given'\)"),
        ({"methods": ["sobol"], "fine_tuned": ["subset"]}, "must be among methods"),
        ({"methods": ["sobol", "sobol"], "fine_tuned": []}, "names one twice"),
        ({"sampler": "saliency"}, r"sampler \('saliency'\)"),
        ({"epochs": 0.0}, r"epochs \(0.0\)"),
        ({"oracle_steps": 0}, r"oracle_steps \(0\)"),
        ({"recovery": RecoverySettings(steps=3)}, "give epochs"),
    ],
)
def test_what_cannot_be_studied_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PlacingStudySettings(**{"models": ["a"], **change})
