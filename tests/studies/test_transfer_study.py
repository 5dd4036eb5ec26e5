"""The transfer study: three stages for each variant and seed, kept after a kill; paired; refused before it begins."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tools.evidence.page import render

from patchmerger.data import DataSettings
from patchmerger.hub import load
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reports.pictures.transfer import FILE
from patchmerger.reports.transfer import report
from patchmerger.runs.run_folder import RunFolder, read_settings
from patchmerger.studies.settings import FineTuning, TransferSettings
from patchmerger.studies.transfer_study import transfer
from patchmerger.training.finetuning import content_of
from patchmerger.training.settings import FitSettings, TrainingSettings

TRAINING = TrainingSettings(epochs=1, warmup_epochs=0, batch_size=512, accelerator="cpu")
SETTINGS = TransferSettings(
    model=ModelSettings(
        "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    ),
    merge=MergeSettings(num_tokens=4),
    training=TRAINING,
    shots=(1, 5),
    draws=2,
    finetuning=FineTuning(training=TRAINING, image_size=16),
    rounds=1,
    seeds=2,
)
STAGES = ["upstream", "1-shot", "5-shot", "fine-tuned"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "transfer"
    transfer(SETTINGS, out=folder, progress=False)
    return folder


@pytest.fixture
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def stage(out: Path, name: str, seed: int, which: str) -> dict:
    return json.loads((out / name / f"seed-{seed}" / which / "results.json").read_text())


def test_every_variant_goes_through_every_stage(out, results):
    for name in ("plain", "merged"):
        found = results["variants"][name]["stages"]
        assert list(found) == STAGES
        for which in ("upstream", "fine-tuned"):
            assert found[which]["metrics"] == [stage(out, name, seed, which)["test_metric"] for seed in (0, 1)]
        few = [stage(out, name, seed, "few-shot") for seed in (0, 1)]
        assert found["5-shot"]["metrics"] == [results["results"][1]["mean"] for results in few]
        tuned = load(out / name / "seed-1" / "fine-tuned" / "model")
        assert [m.num_tokens for m in mergers(tuned)] == ([4] if name == "merged" else [])
        assert found["fine-tuned"]["flops"] > found["upstream"]["flops"]  # of larger images


def test_fine_tuning_starts_from_the_upstream_model(out):
    upstream, tuned = (load(out / "merged" / "seed-0" / which / "model") for which in ("upstream", "fine-tuned"))
    gap = (upstream.blocks[0].attn.qkv.weight - tuned.blocks[0].attn.qkv.weight).abs().mean()
    other = load(out / "merged" / "seed-1" / "upstream" / "model").blocks[0].attn.qkv.weight
    assert gap < 0.5 * (upstream.blocks[0].attn.qkv.weight - other).abs().mean()
    assert read_settings(out / "merged" / "seed-0" / "fine-tuned", FitSettings).init == content_of(
        out / "merged" / "seed-0" / "upstream"
    )


def test_the_differences_are_paired_over_seeds(results):
    plain, merged = (results["variants"][name]["stages"] for name in ("plain", "merged"))
    for which in STAGES:
        gaps = [a - b for a, b in zip(merged[which]["metrics"], plain[which]["metrics"], strict=True)]
        assert plain[which]["difference"] is None
        assert merged[which]["difference"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert merged[which]["difference"]["over"] == "seeds"
    for mode in ("inference", "training"):
        assert [t["name"] for t in results["speed"][mode]["timings"]] == ["plain", "merged"]


def test_the_picture_and_the_table(out, results, capsys):
    report(results)
    with Image.open(out / FILE) as picture:
        assert picture.width >= 1500
        assert len(picture.convert("RGB").resize((64, 32)).getcolors(64 * 32)) > 10
    printed = capsys.readouterr().out
    for word in (*STAGES, "− plain, points", "images/s", "merged: ", "predicted)"):
        assert word in printed


def test_the_page_of_the_evidence_tells_it(results):
    page = render({"transfer-small": results})
    assert "digits → digits, 1 epoch, 2 seeds, CPU" in page
    assert "- At most 1 points below plain, 5-shot: " in page
    assert "- At most 0.3 points below plain, fine-tuned: " in page
    assert "Without average and shallow as controls" in page


def test_the_same_command_again_does_nothing(out, results, monkeypatch):
    monkeypatch.setattr("patchmerger.studies.transfer_study.read_images", pytest.fail)
    assert transfer(SETTINGS, out=out, progress=False) == results


def test_a_study_takes_over_every_stage_of_another(out, results, monkeypatch, tmp_path):
    for name in ("patchmerger.studies.training_runs.fit_images", "patchmerger.studies.transfer_study.few_shot_images"):
        monkeypatch.setattr(name, pytest.fail)
    found = transfer(replace(SETTINGS, seeds=1), out=tmp_path / "one", reuse=out, progress=False)
    for name, variant in found["variants"].items():
        for which, stage_of_one in variant["stages"].items():
            assert stage_of_one["metrics"] == results["variants"][name]["stages"][which]["metrics"][:1]
    assert found["taken_over"]["fine-tuned of merged/seed-0"] == str(out / "merged/seed-0/fine-tuned")
    assert len(found["taken_over"]) == 6


def test_a_folder_that_was_moved_goes_on(out, results, monkeypatch, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    (moved / "results.json").unlink()
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    monkeypatch.setattr("patchmerger.studies.transfer_study.few_shot_images", pytest.fail)
    assert transfer(SETTINGS, out=moved, progress=False)["variants"] == results["variants"]


def test_one_seed_is_paired_over_draws_and_images(out, tmp_path):
    settings, one = replace(SETTINGS, seeds=1), tmp_path / "one"
    RunFolder(one, settings.resolved()).begin()
    for name in ("plain", "merged"):  # trained already
        shutil.copytree(out / name / "seed-0", one / name / "seed-0")
    results = transfer(settings, out=one, progress=False)
    over = {name: found["difference"]["over"] for name, found in results["variants"]["merged"]["stages"].items()}
    assert over == {"upstream": "images", "1-shot": "draws", "5-shot": "draws", "fine-tuned": "images"}


def test_a_study_of_a_trained_model_starts_every_variant_from_it(out, tmp_path):
    init = out / "plain" / "seed-0" / "upstream"
    settings = replace(
        SETTINGS, model=ModelSettings(), init=init, variants=["plain", "located", "shallow"], seeds=1,
        finetuning=FineTuning(training=TRAINING),
    )  # fmt: skip
    results = transfer(settings, out=tmp_path / "run", progress=False)
    assert (results["init"], results["settings"]["init"]) == (str(init), content_of(init))
    tuned = {name: load(tmp_path / "run" / name / "seed-0" / "fine-tuned" / "model") for name in settings.variants}
    assert {name: len(mergers(model)) for name, model in tuned.items()} == {"plain": 0, "located": 1, "shallow": 0}
    assert (len(tuned["plain"].blocks), len(tuned["shallow"].blocks)) == (2, 1)
    start = load(init).state_dict()["blocks.0.attn.qkv.weight"]
    trained = [stage(tmp_path / "run", name, 0, "upstream") for name in settings.variants]
    assert [run["settings"]["init"] for run in trained] == [content_of(init)] * 3
    moved = (load(tmp_path / "run" / "plain" / "seed-0" / "upstream").blocks[0].attn.qkv.weight - start).abs().mean()
    assert moved < 0.5 * start.abs().mean()
    with pytest.raises(ValueError, match="init"):  # other weights are another study
        transfer(replace(settings, init=out / "plain" / "seed-1" / "upstream"), out=tmp_path / "run", progress=False)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from patchmerger.models.settings import MergeSettings, ModelSettings
    from patchmerger.studies import training_runs as runs
    from patchmerger.studies import transfer_study as stages
    from patchmerger.studies import FineTuning, TransferSettings, transfer
    from patchmerger.training.settings import TrainingSettings

    done = []

    def counted(function, stage):
        def run(*args, **kwargs):
            done.append(stage or kwargs["folder"].path.name)
            if len(done) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return run

    runs.fit_images = counted(runs.fit_images, None)
    stages.few_shot_images = counted(stages.few_shot_images, "few-shot")
    stages.measure_speeds = lambda *_, **__: {}
    training = TrainingSettings(epochs=1, warmup_epochs=0, batch_size=128, accelerator="cpu")
    settings = TransferSettings(
        model=ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2,
            "num_heads": 2}),
        merge=MergeSettings(num_tokens=4), variants=["merged"], training=training,
        shots=(1,), draws=2, finetuning=FineTuning(training=training), seeds=1, rounds=1,
    )
    transfer(settings, out=Path(sys.argv[1]), progress=False)
    print(done)
"""


@pytest.mark.slow
def test_a_kill_loses_at_most_the_stage_in_flight(tmp_path):
    def start(kill_at: int) -> subprocess.CompletedProcess[str]:
        code = ["-W", "ignore", "-c", textwrap.dedent(KILLED), str(tmp_path / "run"), str(kill_at)]
        return subprocess.run(
            [sys.executable, *code], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    assert start(3).returncode == -signal.SIGKILL  # in the third stage, fine-tuning
    resumed = start(0)
    assert resumed.stdout == "['fine-tuned']\n", resumed.stderr
    assert (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shots": (500,)}, r"shots \(500\) takes more training images of each class than"),
        ({"downstream": DataSettings(validation=0)}, r"data.validation \(0\) holds out no images"),
        ({"finetuning": FineTuning(image_size=15)}, r"finetuning.image_size \(15, 15\) does not divide"),
    ],
)
def test_what_cannot_be_transferred_to_is_refused_before_training(tmp_path, changes, text):
    settings = replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=text):
        transfer(settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"merge": MergeSettings(num_tokens=99)}, r"num_tokens \(99\)"), ({"variants": ["plane"]}, r"'plane' is not")],
)
def test_variants_that_cannot_be_trained_are_refused_before_training(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        transfer(replace(SETTINGS, **changes), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_several_devices_are_refused_where_the_settings_are_made():
    with pytest.raises(ValueError, match=r"^training.devices \(2\).* must be 1"):
        replace(SETTINGS, training=replace(TRAINING, devices=2))
    with pytest.raises(ValueError, match=r"finetuning.training.devices \(2\).* must be 1"):
        FineTuning(training=replace(TRAINING, devices=2))
