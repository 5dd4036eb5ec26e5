"""The sweep: every cell trained alike, shared by processes, resumed after a kill; a failed cell loses no other."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tools.evidence.page import render

from patchmerger.hub import load
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reports.pictures.sweep import FILE
from patchmerger.reports.sweep import report
from patchmerger.studies.cells import check_cells, grid_cells
from patchmerger.studies.merger_sweep import sweep
from patchmerger.studies.settings import Grid, SweepSettings
from patchmerger.training.fitting import fit_images
from patchmerger.training.settings import Recipe, TrainingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ModelSettings(
    "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
)
SETTINGS = SweepSettings(
    after=[1, 3],
    num_tokens=[2, 4],
    model=MODEL,
    training=TrainingSettings(epochs=1, warmup_epochs=0, batch_size=512, accelerator="cpu"),
    rounds=1,
)
WHOLE = replace(
    SETTINGS,
    after=[1, 3],
    num_tokens=[4],
    further={"two": MergeSettings(after=[1, 3], num_tokens=[8, 2])},
    seeds=2,
)
NAMES = [f"after-{after}-tokens-4" for after in (1, 3)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    sweep(WHOLE, out=folder, progress=False)
    return folder


@pytest.fixture
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def test_every_cell_is_trained_with_every_seed(out, results):
    assert list(results["cells"]) == [*NAMES, "two"]
    for name, cell in [*results["cells"].items(), ("plain", results["plain"])]:
        runs = [json.loads((out / name / f"seed-{s}" / "results.json").read_text()) for s in (0, 1)]
        assert cell["metrics"] == [run["test_metric"] for run in runs]
        assert cell["flops"] == runs[0]["flops"]
    assert [(m.after, m.num_tokens) for m in mergers(load(out / "two" / "seed-1" / "model"))] == [(1, 8), (3, 2)]
    assert (results["errors"], results["missing"]) == ({}, [])


def test_a_cell_is_compared_with_plain_in_accuracy_cost_and_speed(results):
    for cell in results["cells"].values():
        gaps = [a - b for a, b in zip(cell["metrics"], results["plain"]["metrics"], strict=True)]
        assert cell["difference"]["mean"] == pytest.approx(sum(gaps) / 2)
        assert cell["flops"] < results["plain"]["flops"]
        for mode in ("inference", "training"):
            assert cell["speed"][mode]["timings"][0]["name"] == "plain"
        for merger in cell["merger"].values():
            assert 1 <= merger["effective_rank"] <= merger["num_tokens"]
    assert len(results["cells"]["two"]["merger"]) == 2


def test_the_picture_and_the_table(out, results, capsys):
    assert report(results) == 0
    with Image.open(out / FILE) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").resize((64, 32)).getcolors(64 * 32)) > 10
    printed = capsys.readouterr().out
    for word in ("plain", "two", "8 after 1, 2 after 3", "GFLOPs", "− plain, points", "speed-up", "rank"):
        assert word in printed


def test_the_page_of_the_evidence_tells_it(results):
    page = render({"sweep-cifar10-small": results})
    assert "| digits, 1 epoch, 2 seeds, CPU | 3 mergers |" in page
    assert "Most accurate: `" in page
    assert all(f"| {name} |" in page for name in [*NAMES, "two", "plain"])


def test_the_same_command_again_trains_nothing(out, results, monkeypatch):
    monkeypatch.setattr("patchmerger.studies.merger_sweep.read_images", pytest.fail)
    assert sweep(WHOLE, out=out, progress=False) == results


def test_a_sweep_takes_over_cells_of_another(out, results, monkeypatch, tmp_path):
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    cell, fewer = NAMES[1], replace(WHOLE, after=[3], further={})
    found = sweep(fewer, out=tmp_path / "fewer", reuse=out, progress=False)
    assert found["cells"][cell]["metrics"] == results["cells"][cell]["metrics"]
    assert set(found["taken_over"]) == {f"{name}/seed-{s}" for name in ("plain", cell) for s in (0, 1)}


def test_a_failed_cell_is_shown_loses_no_other_and_is_tried_again(tmp_path, monkeypatch, capsys):
    def breaks(images, recipe, **kwargs):
        if recipe.merge is not None and recipe.merge.after == 1:
            raise FloatingPointError("the loss is nan")
        return fit_images(images, recipe, **kwargs)

    settings, out = replace(SETTINGS, after=[1, 3], num_tokens=[4]), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("patchmerger.studies.training_runs.fit_images", breaks)
        results = sweep(settings, out=out, progress=False)
    assert results["errors"] == {"after-1-tokens-4/seed-0": "FloatingPointError: the loss is nan"}
    assert results["cells"]["after-1-tokens-4"]["metric_mean"] is None
    assert results["cells"]["after-3-tokens-4"]["metric_mean"] is not None
    assert report(results) == 1
    assert "tries again what failed" in capsys.readouterr().out
    again = sweep(settings, out=out, progress=False)
    assert again["errors"] == {}
    assert again["cells"]["after-1-tokens-4"]["metric_mean"] is not None
    assert again["cells"]["after-3-tokens-4"]["metrics"] == results["cells"]["after-3-tokens-4"]["metrics"]


@pytest.mark.slow
def test_shards_make_up_the_whole(tmp_path, monkeypatch):
    settings, out = replace(SETTINGS, after=[2], num_tokens=[2, 4]), tmp_path / "run"
    first = sweep(settings, shard="1/2", out=out, progress=False)
    assert first["missing"] == ["after-2-tokens-2/seed-0"]
    assert not (tmp_path / "run" / "results.json").exists()
    report(first)
    whole = sweep(settings, shard="2/2", out=out, progress=False)
    assert whole["missing"] == []
    monkeypatch.setattr("patchmerger.studies.training_runs.fit_images", pytest.fail)
    assert sweep(settings, out=out, progress=False) == whole


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from patchmerger.models.settings import ModelSettings
    from patchmerger.studies import training_runs as runs
    from patchmerger.studies import SweepSettings, sweep
    from patchmerger.training.settings import TrainingSettings

    fit_images, trained = runs.fit_images, []

    def fit_or_die(*args, folder, **kwargs):
        trained.append(f"{folder.path.parent.name}/{folder.path.name}")
        if len(trained) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return fit_images(*args, folder=folder, **kwargs)

    runs.fit_images = fit_or_die
    settings = SweepSettings(
        after=[1, 3], num_tokens=[4], rounds=1,
        model=ModelSettings("vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4,
            "num_heads": 2}),
        training=TrainingSettings(epochs=1, warmup_epochs=0, batch_size=512, accelerator="cpu"),
    )
    sweep(settings, out=Path(sys.argv[1]), progress=False)
    print(trained)
"""


@pytest.mark.slow  # the same machinery as transfer's
def test_a_kill_loses_at_most_the_run_in_flight(tmp_path):
    def start(kill_at: int) -> subprocess.CompletedProcess[str]:
        code = ["-W", "ignore", "-c", textwrap.dedent(KILLED), str(tmp_path / "run"), str(kill_at)]
        return subprocess.run(
            [sys.executable, *code], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    assert start(2).returncode == -signal.SIGKILL
    resumed = start(0)
    assert resumed.stdout == "['after-1-tokens-4/seed-0', 'after-3-tokens-4/seed-0']\n", resumed.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_a_grid_of_more_than_places_and_tokens():
    cells = grid_cells(Grid([2], [4, 8], ["scores", "both"], logit_std=[0.1]), MergeSettings(), Recipe(model=MODEL))
    assert [cell.name for cell in cells] == [
        f"after-2-tokens-{count}-norm-{norm}-logit-std-0.1" for count in (4, 8) for norm in ("scores", "both")
    ]
    assert cells[1].merge == MergeSettings(num_tokens=4, after=2, norm="both", logit_std=0.1)
    assert cells[1].options == {"norm": "both", "logit_std": 0.1}


def test_cells_that_cannot_be_built_are_all_told():
    cells = grid_cells(Grid([2, 4], [4, 16, 20]), MergeSettings(), Recipe(model=MODEL))
    with pytest.raises(ValueError, match=r"5 of 6 cells cannot be trained; nothing was: after-2.*; after") as error:
        check_cells(cells, Recipe(model=MODEL), 10)
    for text in (
        "after-2-tokens-16: num_tokens (16) after block 2 merges nothing: 16 tokens arrive",
        "after-2-tokens-20: num_tokens (20) after block 2 is more than the 16 tokens that arrive",
        "after-4-tokens-4: after (4) must be a block from 1 to 3",
    ):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seeds": 0}, r"seeds \(0\) must be at least 1"),
        ({"rounds": 0}, r"rounds \(0\) must be at least 1"),
        ({"merge": MergeSettings(num_tokens=2)}, r"merge.num_tokens \(2\) are what a sweep varies"),
        ({"merge": MergeSettings(keep_rate=0.5)}, r"merge.keep_rate \(0.5\) and num_tokens \(\[\d+.*further"),
        ({"merge": None}, r"merge \(None\) must be MergeSettings"),
        ({"training": replace(SETTINGS.training, devices=2)}, r"training.devices \(2\).* must be 1"),
    ],
)
def test_settings_that_no_sweep_can_have_are_refused_where_they_are_made(changes, text):
    with pytest.raises((ValueError, TypeError), match=text):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"after": []}, r"after is empty"),
        ({"after": [2, 2]}, r"after \(\[2, 2\]\) names a value twice"),
        ({"further": {"../a": MergeSettings()}}, r"further \('../a'\) must be letters"),
    ],
)
def test_grids_that_no_sweep_can_have_are_refused_where_they_are_made(values, text):
    with pytest.raises(ValueError, match=text):
        Grid(**values)


@pytest.mark.parametrize(
    ("grid", "shard", "text"),
    [
        (
            {"after": [2], "num_tokens": [4], "further": {"plain": MergeSettings()}},
            None,
            r"further names a cell 'plain', which there is already",
        ),
        ({"after": [4]}, None, r"2 of 2 cells cannot be trained"),
        ({"after": [2]}, "3/2", r"shard \('3/2'\)"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_training(tmp_path, grid, shard, text):
    with pytest.raises(ValueError, match=text):
        sweep(replace(SETTINGS, **grid), shard=shard, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
