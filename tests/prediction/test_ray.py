"""The recipe of docs/predict.md for Ray Data, as it stands there, on two local workers."""

import os
import re
import types
from pathlib import Path

import pytest

import patchmerger
from conftest import make_vit
from patchmerger.data import Preprocessing
from prediction.test_predictor import NAMES, picture

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_the_documented_recipe_classifies_a_folder_on_two_workers(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the recipe is for Ray Data")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(patchmerger.__file__).parents[1]), str(tmp_path)]))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # at 15, Ray's own, its workers wait for all other tests
    patchmerger.save(
        make_vit(), tmp_path / "model", preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3), class_names=NAMES
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    for place in range(5):
        picture(place).save(photos / f"{place}.png")
    (photos / "2.png").write_text("no image")
    (recipe,) = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    module = types.ModuleType("__main__")  # of which Ray sends the code itself
    exec(recipe, vars(module))
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        module.classify(str(tmp_path / "model"), str(photos), str(tmp_path / "out"))
    finally:
        ray.shutdown()
    rows = {Path(row["image"]).name: row for row in parquet.read_table(tmp_path / "out").to_pylist()}
    expected = patchmerger.predict(tmp_path / "model", photos, top=1)
    assert sorted(rows) == [f"{place}.png" for place in range(5)]
    assert rows["2.png"]["error"] == "not an image"
    for prediction in expected:
        row = rows[Path(prediction.image).name]
        assert row["class"] == prediction.classes[0].name
        assert row["probability"] == pytest.approx(prediction.classes[0].probability, abs=1e-5)
