"""A model in memory is trained, on a dataset of one's own; one that cannot be is refused at once."""

import copy

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from patchmerger.data import DataSettings
from patchmerger.insertion import insert
from patchmerger.models.settings import MergeSettings
from patchmerger.runs.run_folder import read_settings
from patchmerger.training.evaluation import evaluate
from patchmerger.training.fitting import fit
from patchmerger.training.settings import FitSettings, Recipe, TrainingSettings
from patchmerger.training.trainer import KeepLast

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning")


def in_memory(num_classes):
    args = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **args)


def test_a_model_in_memory_is_fine_tuned_on_a_dataset_of_ones_own(tmp_path):
    model = in_memory(num_classes=2)
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 2
    own = {"train": TensorDataset(images, labels), "test": TensorDataset(images[:16], labels[:16])}
    recipe = Recipe(merge=MergeSettings(num_tokens=4), training=TrainingSettings(1, batch_size=16, accelerator="cpu"))
    results = fit(recipe, own, model=model, out=tmp_path / "run", progress=False)
    assert results["mergers"] == [{"after": 2, "num_tokens": 4}]
    assert results["images"]["train"] + results["images"]["validation"] == 64
    assert read_settings(tmp_path / "run", FitSettings).data.source == "TensorDataset"
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert_holds(model, saved)


def assert_holds(model, weights):
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert not [name for name, tensor in weights.items() if not torch.equal(state[name], tensor)]


def test_a_model_in_memory_has_what_was_reported_also_where_the_run_was_finished_before(tmp_path):
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 2
    own = {"train": TensorDataset(images, labels), "test": TensorDataset(images[:16], labels[:16])}
    training = TrainingSettings(2, batch_size=16, ema=0.5, accelerator="cpu")
    recipe = Recipe(merge=MergeSettings(num_tokens=4), training=training)
    model = in_memory(num_classes=2).eval()
    again = copy.deepcopy(model)
    results = fit(recipe, own, model=model, out=tmp_path / "run", progress=False)
    averaged = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert_holds(model, averaged)
    assert not model.training
    assert evaluate(model, own, progress=False, accelerator="cpu")["value"] == results["test_metric"]
    assert fit(recipe, own, model=again, out=tmp_path / "run", progress=False) == results
    assert_holds(again, averaged)


def test_an_interrupted_call_leaves_a_model_as_it_was_and_the_same_call_resumes(tmp_path, monkeypatch):
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 2
    recipe = Recipe(merge=MergeSettings(num_tokens=4), training=TrainingSettings(2, batch_size=8, accelerator="cpu"))
    model, save = in_memory(num_classes=2), KeepLast.on_validation_end
    before = copy.deepcopy(model.state_dict())

    def killed(self, trainer, module):
        save(self, trainer, module)
        raise RuntimeError("killed")

    monkeypatch.setattr(KeepLast, "on_validation_end", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(recipe, TensorDataset(images, labels), model=model, out=tmp_path / "run", progress=False)
    assert_holds(model, before)
    monkeypatch.setattr(KeepLast, "on_validation_end", save)
    fit(recipe, TensorDataset(images, labels), model=model, out=tmp_path / "run", progress=False)
    assert_holds(model, load_file(tmp_path / "run" / "model" / "model.safetensors"))


@pytest.mark.parametrize("share", [0, 0.25])
def test_the_share_to_hold_out_is_that_of_the_settings_for_a_dataset_of_ones_own_too(share, tmp_path):
    images, labels = torch.randint(0, 256, (80, 3, 8, 8), dtype=torch.uint8), torch.arange(80) % 2
    own = {"train": TensorDataset(images, labels), "test": TensorDataset(images[:16], labels[:16])}
    recipe = Recipe(DataSettings(validation=share), training=TrainingSettings(1, batch_size=16, accelerator="cpu"))
    results = fit(recipe, own, model=in_memory(num_classes=2), out=tmp_path / "run", progress=False)
    assert results["images"]["validation"] == 80 * share


def test_models_in_memory_that_cannot_be_trained_are_refused(tmp_path):
    model = in_memory(num_classes=3)
    with pytest.raises(ValueError, match=r"VisionTransformer.* has 3 outputs, but data has 10 classes.*reset_class"):
        fit(model=model, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"VisionTransformer\) is given, so that .* must be left out"):
        fit(Recipe(init="vit_tiny_patch16_224"), model=model, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"model .* has weights in float16, .* give model\.float\(\)"):
        fit(model=in_memory(num_classes=10).half(), out=tmp_path / "a")
    grey = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, num_classes=10)
    with pytest.raises(ValueError, match=r"VisionTransformer\) takes images of 1 channels; .* 3 \(RGB\).*in_chans=3"):
        fit(model=grey, out=tmp_path / "a")
    with pytest.raises(TypeError, match=r"data .*Dataset"):
        fit(Recipe(), 3, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("merged", [False, True])
def test_a_model_in_memory_stays_as_it_is_where_no_merger_is_asked_for(merged, tmp_path):
    model = in_memory(num_classes=2)
    if merged:
        insert(model, 6, after=(1, 3), reducer="average")
    images, labels = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64) % 2
    own = {"train": TensorDataset(images, labels), "test": TensorDataset(images[:16], labels[:16])}
    recipe = Recipe(training=TrainingSettings(1, batch_size=16, accelerator="cpu"))
    results = fit(recipe, own, model=model, out=tmp_path / "run", progress=False)
    assert results["mergers"] == [{"after": after, "num_tokens": 6} for after in ((1, 3) if merged else ())]


def test_resumed_between_two_updates_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    images, labels = torch.randint(0, 256, (88, 3, 8, 8), dtype=torch.uint8), torch.arange(88) % 2
    own = TensorDataset(images, labels)
    training = TrainingSettings(4, batch_size=8, accumulate=3, lr=1e-2, logger="none", accelerator="cpu")

    def weights(name):
        fit(Recipe(training=training), own, model=seeded_model(), out=tmp_path / name, progress=False)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    def seeded_model():
        torch.manual_seed(0)
        return in_memory(num_classes=2)

    expected, save, calls = weights("whole"), KeepLast.on_validation_end, []

    def killed(self, trainer, module):
        save(self, trainer, module)
        calls.append(trainer.state.fn)
        if calls.count("fit") == 2:
            raise RuntimeError("killed")

    monkeypatch.setattr(KeepLast, "on_validation_end", killed)
    with pytest.raises(RuntimeError, match="killed"):
        weights("cut")
    monkeypatch.setattr(KeepLast, "on_validation_end", save)
    for name, found in weights("cut").items():
        assert torch.equal(found, expected[name])
