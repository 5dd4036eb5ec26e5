"""The demonstration: both models in one table and one picture; resumed, and never overwritten."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchmerger.acceleration.settings import PlacementSettings, RecoverySettings
from patchmerger.data import Augmentation
from patchmerger.hub import load
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import ModelSettings
from patchmerger.reports.demo import report
from patchmerger.reports.pictures.demo import FILE
from patchmerger.studies import demonstration as module
from patchmerger.training.settings import TrainingSettings

TINY = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The same demonstration with a model that is trained in a second."""
    training = TrainingSettings(epochs=3, batch_size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module,
            "PLAIN",
            replace(
                module.PLAIN,
                model=ModelSettings("vit_tiny_patch16_224", TINY),
                training=training,
                augmentation=Augmentation("none", flip=False),
            ),
        )
        patch.setattr(module, "PLACEMENT", PlacementSettings(after=1, num_tokens=4, rounds=3))
        patch.setattr(module, "RECOVERY", RecoverySettings(epochs=0.5, batch_size=128))
        yield


@pytest.fixture(scope="module")
def one(small: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of a demonstration with one seed."""
    return module.demo(out=tmp_path_factory.mktemp("runs") / "demo", progress=False)


@pytest.fixture(scope="module")
def two(one: dict[str, Any]) -> dict[str, Any]:
    """Those with two seeds, of which the first is done already."""
    folder = Path(one["folder"])
    settings = json.loads((folder / "settings.json").read_text())
    settings["settings"]["seeds"] = 2
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "results.json").unlink()
    return module.demo(seeds=2, out=folder, progress=False)


def test_both_models_side_by_side(two: dict[str, Any], capsys) -> None:
    results, out = two, Path(two["folder"])
    plain, merged = results["models"]["plain"], results["models"]["merged"]
    for found in (plain, merged):
        assert len(found["accuracies"]) == 2
        assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert results["difference"]["over"] == "seeds"
    assert results["difference"]["mean"] == pytest.approx(merged["accuracy"] - plain["accuracy"])
    for seed in range(2):
        folder = out / f"seed-{seed}"
        assert not mergers(load(folder / "plain" / "model"))
        assert len(mergers(load(folder / "merged" / "model"))) == 1
    report(results)
    shown = capsys.readouterr().out
    assert f"{100 * plain['accuracy']:.2f}" in shown
    assert f"{100 * merged['accuracy']:.2f}" in shown
    with Image.open(out / FILE) as picture:
        assert picture.width > 500
    assert module.demo(seeds=2, out=out, progress=False) == results


def test_one_split_has_intervals_over_its_images(one: dict[str, Any]) -> None:
    results = one
    assert (results["difference"]["over"], results["difference"]["n"]) == ("images", 360)
    low, high = results["models"]["plain"]["interval"]
    assert 0 < low < results["models"]["plain"]["accuracy"] < high < 1


def test_seeds_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seeds \(0\).*at least 1"):
        module.demo(seeds=0, out=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
