"""The study of accelerations: a grid of cells, each kept, with the plain model fine-tuned beside them."""

import json
import shutil

import pytest

from patchmerger import fit
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.models.settings import ModelSettings
from patchmerger.reports.acceleration_study import PICTURE_FILE, report_accelerations
from patchmerger.studies.acceleration_study import accelerate_study, curves
from patchmerger.studies.settings import AccelerationStudySettings
from patchmerger.training.settings import Recipe, TrainingSettings

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
]
TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2}
QUICK = {
    "speedups": [1.3], "budgets": [0.0, 0.2], "query_inits": ["kmeans", "random"], "rounds": 1,
    "calibration_images": 32, "recovery": RecoverySettings(batch_size=64, accelerator="cpu"),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    training = TrainingSettings(epochs=2, batch_size=128, warmup_epochs=0, accelerator="cpu")
    recipe = Recipe(model=ModelSettings("vit_tiny_patch16_224", TINY), merge=None, training=training)
    fit(recipe, out=out, progress=False)
    return out


def test_a_grid_is_measured_resumed_and_shown(trained, tmp_path, capsys):
    out = tmp_path / "study"
    results = accelerate_study(AccelerationStudySettings([trained], **QUICK), out=out, progress=False)
    assert results["steps"] == [20]
    assert len(results["cells"]) == 2 + 4
    assert {(c["query_init"], c["budget"], c["steps"]) for c in results["cells"]} == {
        (start, *length) for start in ("plain", "kmeans", "random") for length in ((0.0, 0), (0.2, 4))
    }
    (plain,) = [c for c in results["curves"] if (c["query_init"], c["budget"]) == ("plain", 0)]
    assert (plain["difference"], plain["kept"], plain["sd"]) == (0, 1, None)
    saved = json.loads((trained / "results.json").read_text())
    assert plain["accuracy"] == pytest.approx(saved["test_metric"])
    assert results["places"]["1.3"]["predicted"] >= 1.3
    report_accelerations(results)
    assert (out / PICTURE_FILE).stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "kmeans" in printed
    assert f"{100 * plain['accuracy']:.2f} (+0.00)" in printed

    (out / "results.json").unlink()
    cell = out / "model-0" / "1.3-random-0.2.json"
    kept = {path: path.stat().st_mtime_ns for path in out.glob("model-0/*.json") if path != cell}
    before = json.loads(cell.read_text())
    cell.unlink()
    shutil.rmtree(cell.with_suffix(""))
    again = accelerate_study(AccelerationStudySettings([trained], **QUICK), out=out, progress=False)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads(cell.read_text())["accuracy"] == before["accuracy"]
    assert again["curves"] == results["curves"]


def test_the_best_initialisation_is_that_of_what_follows(trained, tmp_path):
    out = tmp_path / "study"
    results = accelerate_study(
        AccelerationStudySettings([trained], **{**QUICK, "query_inits": ["best"]}), out=out, progress=False
    )
    assert {path.stem for path in out.glob("model-0/*.safetensors")} == {"1.3-reconstruction", "1.3-located"}
    assert [c["steps"] for c in results["cells"] if c["query_init"] == "best"] == [0, 4]


def test_curves_are_means_of_differences_within_a_model():
    cells = [
        {"model": m, "query_init": init, "speedup": s, "budget": 0.0, "accuracy": a}
        for m, init, s, a in (
            (0, "plain", 1.0, 0.8),
            (1, "plain", 1.0, 0.6),
            (0, "best", 2.0, 0.7),
            (1, "best", 2.0, 0.6),
        )
    ]
    best = curves(cells)[1]
    assert best["difference"] == pytest.approx(-0.05)
    assert best["kept"] == pytest.approx((0.875 + 1) / 2)
    assert best["sd"] == pytest.approx(0.05 * 2**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"speedups": [0.9]}, r"speedups \(\[0.9\]\) must be .* above 1"),
        ({"budgets": [0.1]}, r"budgets \(\[0.1\]\) must be shares .* and 0 one of them"),
        ({"query_inits": ["best", "best"]}, "names one twice"),
        ({"speedups": [50.0]}, r"speedup \(50\) is more than merging saves"),
    ],
)
def test_what_cannot_be_studied_is_told(change, message, trained, tmp_path):
    with pytest.raises(ValueError, match=message):
        accelerate_study(
            AccelerationStudySettings(**{"models": [trained], **QUICK, **change}),
            out=tmp_path / "study",
            progress=False,
        )
    assert not (tmp_path / "study").exists()


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no finished run of patchmerger fit"):
        accelerate_study(AccelerationStudySettings([tmp_path], **QUICK), out=tmp_path / "study", progress=False)
