"""The demonstration: both models in one table and one picture; resumed, and never overwritten."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from patchmerger.acceleration.settings import PlacementSettings, RecoverySettings
from patchmerger.hub import load
from patchmerger.inserted import mergers
from patchmerger.models.settings import ModelSettings
from patchmerger.reports.demonstration import PICTURE_FILE, report_demonstration
from patchmerger.studies import demonstration as module
from patchmerger.training.settings import TrainingSettings

TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same demonstration with a model that is trained in a second."""
    training = TrainingSettings(epochs=3, batch_size=64)
    monkeypatch.setattr(
        module, "PLAIN", replace(module.PLAIN, model=ModelSettings("vit_tiny_patch16_224", TINY), training=training)
    )
    monkeypatch.setattr(module, "PLACEMENT", PlacementSettings(after=1, num_tokens=4, rounds=3))
    monkeypatch.setattr(module, "RECOVERY", RecoverySettings(epochs=0.5, batch_size=128))


def test_both_models_side_by_side(small, tmp_path: Path, capsys) -> None:
    results = module.demo(seeds=2, out=tmp_path / "demo", progress=False, command="patchmerger demo")
    plain, merged = results["models"]["plain"], results["models"]["merged"]
    for found in (plain, merged):
        assert len(found["accuracies"]) == 2
        assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert results["difference"]["over"] == "seeds"
    assert results["difference"]["mean"] == pytest.approx(merged["accuracy"] - plain["accuracy"])
    for seed in range(2):
        folder = tmp_path / "demo" / f"seed-{seed}"
        assert not mergers(load(folder / "plain" / "model"))
        assert len(mergers(load(folder / "merged" / "model"))) == 1
    report_demonstration(results)
    shown = capsys.readouterr().out
    assert f"{100 * plain['accuracy']:.2f}" in shown
    assert f"{100 * merged['accuracy']:.2f}" in shown
    with Image.open(tmp_path / "demo" / PICTURE_FILE) as picture:
        assert picture.width > 500
    assert module.demo(seeds=2, out=tmp_path / "demo", progress=False) == results


def test_one_split_has_intervals_over_its_images(small, tmp_path: Path) -> None:
    results = module.demo(out=tmp_path / "demo", progress=False)
    assert (results["difference"]["over"], results["difference"]["n"]) == ("images", 360)
    low, high = results["models"]["plain"]["interval"]
    assert 0 < low < results["models"]["plain"]["accuracy"] < high < 1


def test_seeds_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seeds \(0\).*at least 1"):
        module.demo(seeds=0, out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
