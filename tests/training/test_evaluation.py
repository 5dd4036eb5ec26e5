"""Evaluating a model of any library, in memory or saved, on a source or on a dataset of one's own."""

import pytest
import torch
import transformers
from torch.utils.data import TensorDataset

import patchmerger
from patchmerger.data import DataSettings, Preprocessing, load_images
from patchmerger.training.evaluation import evaluate
from trained_on_digits import trained_vit

pytestmark = pytest.mark.usefixtures("one_thread")
QUIET = {"accelerator": "cpu", "progress": False}
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def digits():
    return load_images(DataSettings(), seed=0)


def expected(model, digits):
    images = digits.test.gather(range(len(digits.test))).float() / 127.5 - 1
    with torch.no_grad():
        return (model(images).argmax(dim=1) == digits.test.targets).float().mean().item()


def test_a_model_in_memory_is_evaluated_and_left_as_it_is(digits):
    model = trained_vit().train()
    before = [parameter.clone() for parameter in model.parameters()]
    found = evaluate(model, "digits", command="patchmerger test", **QUIET)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found["value"] == pytest.approx(expected(model.eval(), digits))
    assert (found["images"], found["metric"], found["command"]) == (len(digits.test), "accuracy", "patchmerger test")
    assert found["value"] == evaluate(model, digits, **QUIET)["value"]


def test_a_saved_model_and_a_dataset_of_ones_own(digits, tmp_path):
    model = trained_vit()
    folder = patchmerger.save(model, tmp_path / "run" / "model", class_names=[f"digit {i}" for i in range(10)])
    pixels = digits.test.gather(range(len(digits.test)))
    own = {"train": TensorDataset(pixels, digits.test.targets), "test": TensorDataset(pixels, digits.test.targets)}
    found = evaluate(folder.parent, own, **QUIET)
    assert found["value"] == pytest.approx(expected(model, digits))


def test_a_model_of_transformers(digits):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8, patch_size=2,
        num_labels=10,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    with pytest.raises(ValueError, match=r"ViTForImageClassification.* does not say .*: give preprocessing"):
        evaluate(model, digits, **QUIET)
    images = digits.test.gather(range(len(digits.test))).float() / 127.5 - 1
    with torch.no_grad():
        right = (model(images).logits.argmax(dim=1) == digits.test.targets).float().mean().item()
    assert evaluate(model, digits, preprocessing=HALF, **QUIET)["value"] == pytest.approx(right)


def test_other_classes_and_other_data_are_refused(digits):
    model = trained_vit()
    model.reset_classifier(3)
    with pytest.raises(ValueError, match=r"data \(ImageSplits\) has 10 classes, but model .* has 3 outputs"):
        evaluate(model, digits, **QUIET)
    with pytest.raises(TypeError, match=r"data .*Dataset"):
        evaluate(trained_vit(), 3, **QUIET)
