"""The comparison: alike training, paired statistics, the table, the picture; resumed and never overwritten."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import patchmerger
from patchmerger.data import DataSettings, ImageSet
from patchmerger.hub import load
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reports.compare import report
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Source
from patchmerger.reports.pictures.compare import FILE
from patchmerger.runs.run_folder import read_settings
from patchmerger.runs.shared_work import SharedWork
from patchmerger.studies import comparison as module
from patchmerger.studies import training_runs
from patchmerger.studies.comparison import compare
from patchmerger.studies.settings import ComparisonSettings, Variant
from patchmerger.training.settings import FitSettings, TrainingSettings

SOURCE = Path(patchmerger.__file__).parent
SETTINGS = ComparisonSettings(
    model=ModelSettings(
        "vit_tiny_patch16_224",
        {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2},
    ),
    merge=MergeSettings(num_tokens=4),
    training=TrainingSettings(epochs=2, batch_size=256, accelerator="cpu"),
    rounds=3,
)
THREE = replace(SETTINGS, variants=["plain", "merged", "shallow"], seeds=2)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "compare"
    compare(THREE, out=folder, command="patchmerger compare", progress=False)
    return folder


@pytest.fixture
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_every_variant_is_trained_with_every_seed_and_kept(out, results):
    assert list(results["variants"]) == ["plain", "merged", "shallow"]
    for name, variant in results["variants"].items():
        runs = [json.loads((out / name / f"seed-{s}" / "results.json").read_text()) for s in (0, 1)]
        assert variant["metrics"] == [run["test_metric"] for run in runs]
        assert variant["metric_mean"] == pytest.approx(sum(variant["metrics"]) / 2)
        assert [len(history) for history in variant["history"]] == [2, 2]
        model = load(out / name / "seed-1" / "model")
        assert [m.after for m in mergers(model)] == ([2] if name == "merged" else [])
    assert len(load(out / "shallow" / "seed-0" / "model").blocks) < 4


def test_variants_are_trained_alike(out, results):
    settings = {name: read_settings(out / name / "seed-0", FitSettings) for name in results["variants"]}
    for key in ("data", "augmentation", "training", "seed"):
        assert len({getattr(s, key) for s in settings.values()}) == 1
    tests = [json.loads((out / name / "seed-0" / "results.json").read_text())["images"] for name in results["variants"]]
    assert all(images == tests[0] for images in tests)


def test_the_differences_are_paired_over_seeds(results):
    plain = results["variants"]["plain"]
    assert plain["difference"] is None
    for name in ("merged", "shallow"):
        ours = results["variants"][name]
        gaps = [a - b for a, b in zip(ours["metrics"], plain["metrics"], strict=True)]
        assert ours["difference"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert ours["difference"]["over"] == "seeds"
        assert ours["difference"]["low"] <= ours["difference"]["mean"] <= ours["difference"]["high"]


def test_the_control_costs_what_the_merged_model_costs(results):
    flops = {name: variant["flops"] for name, variant in results["variants"].items()}
    assert flops["merged"] < 0.75 * flops["plain"]
    assert flops["shallow"] == pytest.approx(flops["merged"], rel=0.3)


def test_speed_is_measured_for_inference_and_training(results):
    for mode in ("inference", "training"):
        timings = {t["name"]: t for t in results["speed"][mode]["timings"]}
        assert timings.keys() == results["variants"].keys()
        assert all(len(t["round_seconds"]) == 3 for t in timings.values())


def test_the_picture_and_the_table(out, results, capsys):
    report(results)
    with Image.open(out / FILE) as picture:
        assert picture.width > 1200
        assert len(picture.convert("RGB").resize((64, 32)).getcolors(64 * 32)) > 10
    printed = capsys.readouterr().out
    for word in ("17 → 5", "GFLOPs", "− plain, points", "[95% interval]", "images/s", "speed-up", "shallow"):
        assert word in printed
    assert printed.count("paired over 2 seeds") == 2


def test_the_same_command_again_trains_nothing(out, results, monkeypatch):
    monkeypatch.setattr(module, "read_images", pytest.fail)
    again = compare(THREE, out=out, progress=False)
    assert again == results


def test_an_interrupted_comparison_trains_only_what_is_missing(out, monkeypatch, tmp_path):
    (out / "results.json").rename(tmp_path / "results.json")
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    again = compare(THREE, out=out, progress=False)
    first = json.loads((tmp_path / "results.json").read_text())
    assert again["variants"] == first["variants"]


def test_what_another_process_trains_is_waited_for(out, results, monkeypatch, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "run", ignore=shutil.ignore_patterns("results.json.lock", ".work"))
    (tmp_path / "run/results.json").unlink()
    (tmp_path / "run/merged/seed-1").rename(tmp_path / "trained")
    other = SharedWork(tmp_path / "run/.work", ["merged/seed-1"], lambda _: False)
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    (tmp_path / "run/.work").mkdir()
    with other.lock("merged/seed-1") as held:

        def finish(_: float) -> None:
            (tmp_path / "trained").rename(tmp_path / "run/merged/seed-1")
            held.release()

        monkeypatch.setattr("patchmerger.runs.shared_work.time.sleep", finish)
        again = compare(THREE, out=tmp_path / "run", progress=False)
    assert "waiting for merged/seed-1: another process is at it" in capsys.readouterr().err
    assert again["variants"] == results["variants"]


def test_a_comparison_grows_and_trains_only_what_is_new(out, results, monkeypatch, tmp_path, capsys):
    """One more variant and another name for one that is there: the rest is taken over, and said to be."""
    trained = []

    def fit_images(*args, **kwargs):
        trained.append(kwargs["folder"].path)
        return train(*args, **kwargs)

    train = training_runs.fit_images
    monkeypatch.setattr(training_runs, "fit_images", fit_images)
    grown = replace(THREE, variants={"plain": None, "halfway": Variant(merge=THREE.merge), "average": None})
    found = compare(grown, out=tmp_path / "grown", reuse=out, progress=False)
    assert trained == [tmp_path / f"grown/average/seed-{seed}" for seed in (0, 1)]
    for ours, theirs in (("plain", "plain"), ("halfway", "merged")):
        assert found["variants"][ours]["metrics"] == results["variants"][theirs]["metrics"]
    assert found["taken_over"] == {
        f"{ours}/seed-{seed}": str(out / theirs / f"seed-{seed}")
        for ours, theirs in (("plain", "plain"), ("halfway", "merged"))
        for seed in (0, 1)
    }
    assert results["taken_over"] == {}
    load(tmp_path / "grown/halfway/seed-1/model")
    report(found)
    assert "4 results" in capsys.readouterr().out
    section = section_of(Source(tmp_path, found))
    assert [remark for remark in section.remarks if "4 results" in remark]
    assert compare(grown, out=tmp_path / "grown", reuse=out, progress=False) == found
    assert json.loads((out / "plain/seed-0/results.json").read_text())["folder"] == str(out / "plain/seed-0")


@pytest.mark.parametrize("what", ["images", "labels", "images of the same labels"])
def test_trainings_on_other_images_are_neither_reused_nor_resumed(out, tmp_path, monkeypatch, what):
    """The source is the same, but there are fewer images in it than when the earlier trainings read it, or others."""
    read = module.read_images

    def changed(data, **given):
        images = read(data, **given)
        (train,) = images.sets.values()
        others = {
            "images": train.subset(range(1700)),
            "labels": ImageSet(train.images, train.targets.roll(20)),
            "images of the same labels": ImageSet([image.flip(-1) for image in train], train.targets),
        }
        return replace(images, sets={"train": others[what]})

    shutil.copytree(out, tmp_path / "again", ignore=shutil.ignore_patterns(".work"))
    (tmp_path / "again/results.json").unlink()
    monkeypatch.setattr(module, "read_images", changed)
    monkeypatch.setattr(training_runs, "fit_images", pytest.fail)
    for new, reuse in (("new", out), ("again", None)):
        with pytest.raises(ValueError, match=rf"seed-0 was trained on other {what} .*\(digits: "):
            compare(THREE, out=tmp_path / new, reuse=reuse, progress=False)
    assert not (tmp_path / "new").exists()


def test_a_training_whose_model_is_gone_is_named_before_training(out, tmp_path, monkeypatch):
    shutil.copytree(out, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost/merged/seed-1/model")
    monkeypatch.setattr(training_runs, "fit_images", pytest.fail)
    with pytest.raises(ValueError, match="merged/seed-1 has no model any more"):
        compare(replace(THREE, variants=["plain", "merged", "average"]), out=tmp_path / "new", reuse=tmp_path / "lost")


def test_a_folder_of_other_settings_says_whether_the_study_can_grow(out):
    with pytest.raises(ValueError, match=r"seeds: 2 there, 3 asked for.*this one as reuse$"):
        compare(replace(THREE, seeds=3), out=out)
    with pytest.raises(ValueError, match=r"give the same settings to resume it$"):
        compare(replace(THREE, seeds=3, training=replace(THREE.training, lr=0.5)), out=out)


def test_the_settings_pass_few_files_on_their_way_to_the_results(out, tmp_path):
    """At most twelve, with those of the command and of what narrows its options to them."""
    passed = {"commands/compare.py", "runs/narrowing.py"}

    def follow(frame, event, _):
        file, code = Path(frame.f_code.co_filename), frame.f_code
        if event == "call" and SOURCE in file.parents:
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(isinstance(frame.f_locals.get(name), ComparisonSettings) for name in names):
                passed.add(file.relative_to(SOURCE).as_posix())

    sys.setprofile(follow)
    try:
        compare(replace(SETTINGS, seeds=1), out=tmp_path / "followed", reuse=out, progress=False)
    finally:
        sys.setprofile(None)
    assert {"studies/comparison.py", "studies/training_runs.py", "runs/run_folder.py"} <= passed
    assert len(passed) <= 12, sorted(passed)


@pytest.mark.parametrize(
    ("changes", "reuse", "facts"),
    [
        ({"seeds": 1, "training": replace(THREE.training, lr=0.5)}, None, ["training.lr", "0.5 asked for"]),
        ({"seeds": 1}, "nowhere", ["nowhere", "no folder"]),
        ({"seeds": 1}, "empty", ["nothing finished"]),
    ],
)
def test_what_is_of_no_use_is_refused_before_training(out, tmp_path, monkeypatch, changes, reuse, facts):
    monkeypatch.setattr(training_runs, "fit_images", pytest.fail)
    for name in ("empty", "grown"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"^reuse \(") as caught:
        compare(replace(THREE, **changes), out=tmp_path / "grown", reuse=tmp_path / reuse if reuse else out)
    assert all(fact in str(caught.value) for fact in facts)
    assert list((tmp_path / "grown").iterdir()) == []


def test_one_seed_is_paired_over_images(out, tmp_path):
    results = compare(replace(SETTINGS, seeds=1), out=tmp_path / "one", reuse=out, progress=False)
    difference = results["variants"]["merged"]["difference"]
    assert (difference["over"], difference["n"]) == ("images", results["data"]["test"])
    assert difference["mean"] == pytest.approx(
        results["variants"]["merged"]["metric_mean"] - results["variants"]["plain"]["metric_mean"]
    )


def test_variants_of_ones_own(tmp_path):
    own = {
        "four": Variant(merge=MergeSettings(num_tokens=2, after=1)),
        "wide": Variant(model={"embed_dim": 32}),
    }
    training = TrainingSettings(epochs=1, warmup_epochs=0, batch_size=512, accelerator="cpu")
    settings = replace(SETTINGS, training=training, variants=own, seeds=1)
    results = compare(settings, out=tmp_path / "own", progress=False)
    assert results["variants"]["four"]["mergers"] == [{"after": 1, "num_tokens": 2}]
    assert results["variants"]["wide"]["params"] > 2 * results["variants"]["four"]["params"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": 0}, r"seeds \(0\) must be at least 1"),
        ({"variants": ["plain", "merge"]}, r"'merge' is not ready-made: choose from plain, merged, paper"),
        ({"variants": ["plain", "plain"]}, r"names one twice"),
        ({"variants": []}, r"variants is empty"),
        ({"merge": MergeSettings(num_tokens=64)}, r"num_tokens \(64\) after block 2 is more than the 16 tokens"),
        ({"data": DataSettings("nowhere")}, r"nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_training(tmp_path, monkeypatch, changes, text):
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        compare(replace(SETTINGS, **changes), out=tmp_path / "run")


def test_several_devices_are_refused():
    with pytest.raises(ValueError, match=r"training.devices \(2\).* must be 1: a study uses several"):
        ComparisonSettings(training=TrainingSettings(1, devices=2))
