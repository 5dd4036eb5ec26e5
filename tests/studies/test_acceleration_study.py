"""The study of accelerations: a grid of cells, each kept, with controls beside the mergers."""

import json
import os
from dataclasses import replace

import pytest
import torch

from patchmerger import fit
from patchmerger.acceleration.placement import candidate_placements
from patchmerger.acceleration.settings import PlacementSettings, RecoverySettings
from patchmerger.costs import cost
from patchmerger.hosts import find_host
from patchmerger.hosts.example_inputs import example_input
from patchmerger.hub import load
from patchmerger.models.settings import ModelSettings
from patchmerger.reports.accelerate_study import report
from patchmerger.reports.pictures.accelerate_study import FILE
from patchmerger.studies import trained_study
from patchmerger.studies.acceleration_study import _paired, accelerate_study, cells_of
from patchmerger.studies.methods import Method, at_equal_flops, blocks_within, cut, known_methods
from patchmerger.studies.trained_settings import AccelerationStudySettings
from patchmerger.training.settings import Recipe, TrainingSettings

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
METHODS = ["located", "average", "cut", "plain"]
QUICK = {
    "speedups": [1.4], "methods": METHODS, "epochs": [0.0, 0.2], "rounds": 1, "calibration_images": 32,
    "recovery": RecoverySettings(batch_size=64, accelerator="cpu"), "candidates": 2, "speed_batch_size": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folders = [tmp_path_factory.mktemp("runs") / f"plain-{seed}" for seed in (0, 1)]
    training = TrainingSettings(epochs=1, batch_size=128, warmup_epochs=0, accelerator="cpu")
    recipe = Recipe(model=ModelSettings("vit_tiny_patch16_224", TINY), merge=None, training=training)
    for seed, out in enumerate(folders):
        fit(recipe, out=out, seed=seed, progress=False)
    return folders


@pytest.fixture(scope="module")
def study(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "study"
    return accelerate_study(AccelerationStudySettings(trained, **QUICK), out=out, progress=False), out


def test_a_grid_is_measured_and_shown(study, trained, capsys):
    results, out = study
    assert {(c["model"], c["method"], c["epochs"], c["steps"] > 0) for c in results["cells"]} == {
        (model, method, epochs, epochs > 0) for model in (0, 1) for method in METHODS for epochs in (0.0, 0.2)
    }
    saved = [json.loads((folder / "results.json").read_text())["test_metric"] for folder in trained]
    assert [plain["accuracy"] for plain in results["plain"]] == pytest.approx(saved)
    (still,) = [c for c in results["curves"] if (c["method"], c["epochs"]) == ("plain", 0)]
    assert still["difference"]["models"]["mean"] == still["difference"]["images"]["mean"] == 0
    for curve in results["curves"]:
        cells = [c for c in results["cells"] if (c["method"], c["epochs"]) == (curve["method"], curve["epochs"])]
        mean = sum(c["accuracy"] for c in cells) / 2
        assert curve["accuracy"] == pytest.approx(mean)
        assert curve["difference"]["models"]["mean"] == pytest.approx(mean - sum(saved) / 2)
        tokens = results["places"]["1.4"]["num_tokens"]
        assert curve["num_tokens"] == (None if curve["method"] in ("plain", "cut") else tokens)
        assert (curve["behind"] is None) == (curve["method"] in ("located", "plain"))  # which has no speed-up
    assert results["places"]["1.4"]["predicted"] >= 1.4
    assert not (out / "kept").exists()
    report(results)
    assert (out / FILE).stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "fewer blocks" in printed
    assert f"{100 * still['accuracy']:.2f}" in printed


def test_the_placement_is_the_one_that_differs_least_on_held_out_images(study):
    results, _ = study
    tried = results["trials"]["1.4"]
    assert len({place["after"] for place in tried}) == 2
    best = min(tried, key=lambda place: place["divergence"])
    assert results["places"]["1.4"]["after"] == best["after"]


def test_what_is_done_is_kept_when_a_study_resumes(study, trained):
    results, out = study
    (out / "results.json").rename(out / "before.json")
    cell = out / "model-1" / "1.4-average-rear-0.2.json"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("model-*/*.json") if path != cell}
    before = json.loads(cell.read_text())
    cell.unlink()
    again = accelerate_study(AccelerationStudySettings(trained, **QUICK), out=out, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads(cell.read_text())["accuracy"] == before["accuracy"]
    assert again["curves"] == results["curves"]


def test_a_study_grows_and_does_only_what_is_new(study, trained, tmp_path, monkeypatch, capsys):
    """One method more, and one model fewer: trials and cells that are the same are taken over."""
    results, out = study
    recovered, recover = [], trained_study.distill

    def distill(*args, **kwargs):
        recovered.append(kwargs["out"].name)
        return recover(*args, **kwargs)

    monkeypatch.setattr(trained_study, "distill", distill)
    monkeypatch.setattr("patchmerger.acceleration.placement_trials.PlacementTrials.try_placement", pytest.fail)
    grown = AccelerationStudySettings(trained[:1], **{**QUICK, "methods": [*METHODS, "random"]})
    found = accelerate_study(grown, out=tmp_path / "grown", reuse=out, progress=False)
    assert recovered == ["1.4-random-rear-0.2"]
    own = {(c["method"], c["epochs"]): c for c in found["cells"]}
    for cell in results["cells"]:
        if cell["model"] == 0:
            assert own[cell["method"], cell["epochs"]]["accuracy"] == cell["accuracy"]
    assert len(found["taken_over"]) == 8
    assert set(found["taken_over"].values()) == {str(out / "model-0")}
    report(found)
    assert "8 results" in capsys.readouterr().out


def test_a_study_of_other_settings_is_not_reused(study, trained, tmp_path):
    other = {**QUICK, "calibration_images": 16}
    with pytest.raises(ValueError, match=r"^reuse \(.*calibration_images: 32 there, 16 asked for"):
        accelerate_study(AccelerationStudySettings(trained, **other), out=tmp_path / "other", reuse=study[1])
    with pytest.raises(ValueError, match=r"^reuse \(.*settings\.json"):
        accelerate_study(AccelerationStudySettings(trained, **QUICK), out=tmp_path / "other", reuse=study[1].parent)
    assert not (tmp_path / "other").exists()


def test_keep_rates_at_three_depths(trained, tmp_path, capsys):
    """A quarter, half and three quarters of the blocks; what works inside a block does so in the next one."""
    further = {"speedups": [], "keep_rates": [0.5], "methods": ["located", "tome", "regions"], "epochs": [0.0, 0.1]}
    settings = AccelerationStudySettings(trained[:1], **{**QUICK, **further})
    results = accelerate_study(settings, out=tmp_path / "study", progress=False)
    stages = results["stages"]["0.5"]
    assert (stages["after"], stages["num_tokens"]) == ([1, 2, 3], [8, 4, 2])
    found = {(curve["method"], curve["epochs"]): curve for curve in results["curves"]}
    assert len(found) == 6
    whole = cost(load(trained[0] / "model")).flops
    for (method, _), curve in found.items():
        assert (curve["speedup"], curve["keep_rate"]) == (None, 0.5)
        assert curve["num_tokens"] == [8, 4, 2]
        assert (curve["behind"] is None) == (method == "located")
    assert found["located", 0.0]["flops"] == pytest.approx(whole / stages["predicted"], rel=0.02)
    assert found["located", 0.0]["flops"] < found["tome", 0.0]["flops"] < whole
    report(results)
    assert "keep 0.5" in capsys.readouterr().out


def test_the_plain_model_is_trained_on_once_whatever_it_is_compared_with():
    settings = AccelerationStudySettings(
        ["a"],
        speedups=(1.4, 2.0),
        methods=("located", "plain"),
        scopes=("rear", "rear-then-all"),
        epochs=(0.0, 1.0, 3.0),
    )
    names = [cell.name for cell in cells_of(settings)]
    assert len(set(names)) == len(names) == 2 * (1 + 2 * 2) + 3
    assert {c.scope for c in cells_of(settings) if c.method == "plain" and c.epochs} == {"all"}


def test_the_cut_model_has_no_fewer_flops_than_the_merged_one(vit):
    whole = cost(vit).flops
    depth = len(find_host(vit).blocks)
    for speedup in (1.2, 1.5, 3.0):
        blocks = blocks_within(vit, speedup)
        assert cost(cut(vit, blocks)).flops * speedup >= whole
        assert blocks == 1 or cost(cut(vit, blocks - 1)).flops * speedup < whole
    assert len(find_host(vit).blocks) == depth


def test_a_method_that_works_inside_a_block_gets_the_tokens_of_equal_flops(vit):
    (place,) = candidate_placements(vit, PlacementSettings(after=1, num_tokens=8), 1)
    found = at_equal_flops("topk", vit, place)
    assert found == replace(place, num_tokens=found.num_tokens)
    assert found.num_tokens < place.num_tokens

    def error(count: int) -> float:
        student = Method("topk", vit, replace(place, num_tokens=count)).student(torch.empty(0), recovers=False, seed=0)
        return abs(cost(student).flops - cost(vit).flops / place.predicted)

    assert error(found.num_tokens) < min(error(found.num_tokens - 1), error(found.num_tokens + 1))
    assert at_equal_flops("average", vit, place) == at_equal_flops("located", vit, place) == place


@pytest.mark.parametrize("name", known_methods())
def test_what_a_method_begins_with_is_fixed_by_the_seed(name, vit):
    (place,) = candidate_placements(vit, PlacementSettings(after=1, num_tokens=8), 1)
    images = example_input(vit, batch_size=4, seed=0).images
    states = []
    for drawn_before in (1, 2):
        torch.manual_seed(drawn_before)
        states.append(Method(name, vit, place).student(images, recovers=True, seed=0).state_dict())
        assert torch.initial_seed() == drawn_before
    first, second = states
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"speedups": [0.9]}, r"speedups \(\[0.9\]\) must be .* above 1"),
        ({"keep_rates": [1.0]}, r"keep_rates \(\[1.0\]\) must be above 0 and below 1"),
        ({"epochs": [-0.1]}, r"epochs \(\[-0.1\]\) must be .* 0 or above"),
        ({"methods": ["best", "best"]}, "names one twice"),
        ({"methods": ["tokens"]}, r"methods \('tokens'\) must be among plain, cut, regions, .*average"),
        ({"recovery": RecoverySettings(epochs=3)}, "recovery.epochs.* give epochs .and scopes"),
        ({"speedups": [50.0]}, r"speedup \(50\) is more than merging saves"),
    ],
)
def test_what_cannot_be_studied_is_refused(change, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        accelerate_study(
            AccelerationStudySettings(**{"models": trained, **QUICK, **change}),
            out=tmp_path / "study",
            progress=False,
        )
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no finished run of patchmerger fit"):
        accelerate_study(AccelerationStudySettings([tmp_path], **QUICK), out=tmp_path / "study", progress=False)


def test_models_may_have_test_sets_of_different_sizes():
    ours, theirs = (
        [torch.tensor(right) for right in which] for which in ([[1.0, 1, 0], [1.0, 0]], [[0.0, 1, 0], [1.0, 1]])
    )
    found = _paired(ours, theirs)
    assert found["images"]["n"] == 5  # those of both
    assert found["images"]["mean"] == pytest.approx(0)
    assert found["models"]["mean"] == pytest.approx((1 / 3 - 1 / 2) / 2)
