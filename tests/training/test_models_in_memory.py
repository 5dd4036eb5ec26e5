"""A model in memory is trained in place, on a dataset of one's own; one that cannot be is refused at once."""

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import TensorDataset

from patchmerger.models.settings import MergeSettings
from patchmerger.runs.run_folder import read_settings
from patchmerger.training.fitting import fit
from patchmerger.training.settings import FitSettings, Recipe, TrainingSettings

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
    assert torch.equal(saved["head.weight"], model.head.weight)  # trained in place


def test_models_in_memory_that_cannot_be_trained_are_refused(tmp_path):
    model = in_memory(num_classes=3)
    with pytest.raises(ValueError, match=r"VisionTransformer.* has 3 outputs, but data has 10 classes.*reset_class"):
        fit(model=model, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"VisionTransformer\) is given, so that .* must be left out"):
        fit(Recipe(init="vit_tiny_patch16_224"), model=model, out=tmp_path / "a")
    with pytest.raises(ValueError, match=r"model .* has weights in float16, .* give model\.float\(\)"):
        fit(model=in_memory(num_classes=10).half(), out=tmp_path / "a")
    with pytest.raises(TypeError, match=r"data .*Dataset"):
        fit(Recipe(), 3, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()
