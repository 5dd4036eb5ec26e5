"""Studies take people's own datasets, in place of a source in their settings; what is none is refused at once."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from patchmerger.data import DataSettings, OwnData
from patchmerger.data.loading import read_images
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.runs.files import read_json
from patchmerger.studies import compare, sweep, transfer
from patchmerger.studies.settings import ComparisonSettings, FineTuning, SweepSettings, TransferSettings
from patchmerger.training.settings import Recipe, TrainingSettings

ALIKE = {
    "model": ModelSettings(
        "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    ),
    "merge": MergeSettings(num_tokens=4),
    "training": TrainingSettings(epochs=1, batch_size=16, accelerator="cpu"),
    "rounds": 1,
    "seeds": 1,
}
STUDIES = {
    "compare": (compare, ComparisonSettings(**ALIKE)),
    "sweep": (sweep, SweepSettings(**{**ALIKE, "merge": MergeSettings()}, after=[1], num_tokens=[4])),
    "transfer": (
        transfer,
        TransferSettings(**ALIKE, shots=(1,), draws=1, finetuning=FineTuning(ALIKE["training"])),
    ),
}


def own(seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.arange(80) % 2)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")
@pytest.mark.parametrize(
    "name", ["compare", pytest.param("sweep", marks=pytest.mark.slow), pytest.param("transfer", marks=pytest.mark.slow)]
)
def test_a_study_on_a_dataset_of_ones_own(name, tmp_path):
    study, settings = STUDIES[name]
    data = {"data": own(), "downstream": own(1)} if name == "transfer" else {"data": own()}
    results = study(settings, **data, out=tmp_path / "a", progress=False)
    recorded = read_json(tmp_path / "a" / "settings.json")["settings"]["data"]
    assert (recorded["source"], recorded["images"]) == ("TensorDataset", {"train": 80})
    assert results["variants" if name != "sweep" else "cells"]
    assert json.dumps(study(settings, **data, out=tmp_path / "a", progress=False)) == json.dumps(results)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        study(settings, **{**data, "data": own(2)}, out=tmp_path / "a", progress=False)


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_no_dataset_is_refused_at_once(name, tmp_path):
    study, settings = STUDIES[name]
    for data in (np.zeros((2, 8, 8, 3)), 3, iter([1])):
        with pytest.raises(TypeError, match=rf"data \({type(data).__name__}\)"):
            study(settings, data, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_settings_hold_settings():
    for make in (Recipe, ComparisonSettings, SweepSettings, TransferSettings):
        with pytest.raises(TypeError, match=r"data \(TensorDataset\) must be DataSettings.* beside the settings"):
            make(data=own())
    with pytest.raises(TypeError, match=r"downstream \(str\) must be DataSettings"):
        replace(STUDIES["transfer"][1], downstream="digits")
    assert Recipe(data=DataSettings("digits")).data.source == "digits"


def test_a_name_of_a_dataset_does_not_bring_it_back():
    with pytest.raises(TypeError, match=r"data \(TensorDataset\) was a dataset of one's own, which settings only name"):
        read_images(OwnData("TensorDataset", {"train": 80}, "0" * 64))
