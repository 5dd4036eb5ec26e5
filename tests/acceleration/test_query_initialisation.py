"""Queries from the model's own features: each method beats noise on a trained model; nothing else changes."""

import copy

import pytest
import torch
from torchvision.transforms.v2.functional import normalize

from conftest import make_images, make_timm, make_vit
from models.test_classifier import ROPE, transformers_vit
from patchmerger import calibrate, insert
from patchmerger.acceleration.query_initialisation import recommended_query_init
from patchmerger.data import Augmentation, DataSettings, ImageData, Preprocessing, load_images
from patchmerger.insertion.inserted import mergers
from patchmerger.models.classifier import divergence
from patchmerger.reducers import AveragePool
from trained_on_digits import trained_vit

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    images = load_images(DataSettings(), seed=0)
    data = ImageData(
        images, preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3), image_size=8, batch_size=300, epochs=1,
        augmentation=Augmentation("none", flip=False),
    )  # fmt: skip
    pixels, targets = next(iter(data.val_dataloader())), next(iter(data.test_dataloader()))
    return tuple((normalize(x.float() / 255, [0.5] * 3, [0.5] * 3), y) for x, y in (pixels, targets))


@pytest.fixture(scope="module")
def found(digits):
    """The divergence on images that no query was fitted to, and the record, for each method."""
    (images, _), (others, _) = digits
    results = {}
    for method in ("random", "soft", "reconstruction"):
        model = insert(trained_vit(), num_tokens=4, after=2)
        record = calibrate(model, images, method=method, steps=60)
        with torch.no_grad():
            gap = divergence(model(others), trained_vit()(others)).item()
        results[method] = (gap, record.mergers[0], model)
    return results


@pytest.mark.parametrize("method", ["soft", "reconstruction"])
def test_each_method_is_closer_to_the_plain_model_than_noise(method, found):
    gap, record, _ = found[method]
    assert gap < 0.9 * found["random"][0]
    assert record.divergence < 0.9 * record.random
    assert record.random == pytest.approx(found["random"][1].divergence)


def test_steps_of_reconstruction_come_closer_than_any_choice(found):
    gap, record, _ = found["reconstruction"]
    assert record.divergence < record.initial <= found["soft"][1].divergence + 1e-6
    assert gap < found["soft"][0]
    assert record.method.endswith(", reconstruction")


def test_the_logit_std_is_that_of_the_scores_that_was_best(found, digits):
    _, record, model = found["soft"]
    best = min(record.tried, key=record.tried.get)
    assert best == f"{record.method}, {record.logit_std:g}"
    assert record.tried[best] == pytest.approx(record.divergence)
    (merger,) = mergers(model)
    seen = []
    merger.module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(digits[0][0])
        scores = merger.module.norm(seen[0]) @ merger.module.weight.T
    spread = scores.flatten(0, 1).std(dim=0).square().mean().sqrt()
    assert spread.item() == pytest.approx(record.logit_std, rel=1e-3)


def test_soft_queries_are_closer_than_noise_at_the_same_logit_std(found):
    gap, record, _ = found["soft"]
    assert gap < found["random"][0]
    assert record.method.startswith("kmeans")
    assert record.logit_std == 1.0
    assert len(record.tried) == 2


def test_best_is_measured_for_what_follows():
    assert recommended_query_init(recovers=False) == "reconstruction"
    assert recommended_query_init(recovers=True) == "located"
    assert recommended_query_init(recovers=True, grid=False) == "soft"


def test_located_queries_begin_near_zero(digits):
    (images, _), _ = digits
    model = insert(trained_vit(), num_tokens=4, after=2, prior="grid")
    record = calibrate(model, images, method="located").mergers[0]
    assert (record.method, record.logit_std) == ("located", 0.02)
    assert model.blocks[1].merger.weight.abs().max() < 0.05
    with pytest.raises(
        ValueError, match=r"method \('located'\) needs mergers with places: insert\(model, prior='grid'"
    ):
        calibrate(insert(trained_vit(), num_tokens=4, after=2, prior=None), images, method="located")


def test_only_the_queries_change_and_the_modes_stay(digits):
    model = insert(trained_vit(), num_tokens=4, after=2).train()
    model.blocks[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    calibrate(model, digits[0][0], steps=3)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["blocks.1.merger.weight"]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_best_is_a_method_and_a_seed_gives_it_again(digits):
    models = [insert(trained_vit(), num_tokens=4, after=2) for _ in range(2)]
    for model in models:
        record = calibrate(model, digits[0][0], steps=3, seed=5)
        assert record.method == "reconstruction"
    assert torch.equal(models[0].blocks[1].merger.weight, models[1].blocks[1].merger.weight)


def test_images_are_taken_from_a_source():
    model = insert(trained_vit(), num_tokens=4, after=2)
    record = calibrate(model, "digits", method="soft")
    assert record.images == 512
    assert record.mergers[0].divergence < record.mergers[0].random


def test_a_scale_of_the_merger_makes_no_difference(digits):
    plain, scaled = (insert(trained_vit(), num_tokens=4, after=2, scale=scale) for scale in (1.0, 0.25))
    for model in (plain, scaled):
        calibrate(model, digits[0][0], method="soft")
    weights = [model.blocks[1].merger.weight for model in (plain, scaled)]
    assert torch.allclose(weights[0], 0.25 * weights[1], rtol=1e-4, atol=1e-6)


def test_several_mergers_are_set_one_after_another(digits):
    model = insert(trained_vit(), num_tokens=[8, 4], after=[1, 2], prior=None)
    record = calibrate(model, digits[0][0], method="reconstruction", logit_stds=(1.0, 3.0), steps=3)
    assert [merger.name for merger in record.mergers] == ["blocks.0.merger", "blocks.1.merger"]
    assert record.mergers[1].divergence <= record.mergers[1].random
    assert record.as_dict()["mergers"][0]["method"] in ("kmeans, reconstruction", "kmeans-whitened, reconstruction")


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_vit("registers, LayerScale"),
        lambda: make_timm("vit_small_patch16_rope_224", **ROPE),
        transformers_vit,
        lambda: make_vit(num_classes=0),
    ],
    ids=["registers", "RoPE", "transformers", "no head"],
)
def test_any_host_is_brought_closer(make):
    model = insert(make(), num_tokens=4, after=2)
    record = calibrate(model, make_images(16), logit_stds=(0.5, 2.0), steps=10).mergers[0]
    assert record.divergence < record.random


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "middle"}, "method \\('middle'\\) must be one of 'best'"),
        ({"logit_stds": (1.0, -1.0)}, "logit_stds .* must be at least one number above 0"),
        ({"steps": 0}, "steps \\(0\\) must be at least 1"),
        ({"images": torch.zeros(1, 3, 32, 32)}, "fewer than 2 images"),
        ({"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8)}, "images must be normalised floats"),
        ({"images": torch.zeros(4, 1, 32, 32)}, "images \\(4, 1, 32, 32\\) do not fit .* 3 channels, 32 × 32"),
        ({"images": torch.zeros(4, 3, 64, 64)}, "images \\(4, 3, 64, 64\\) do not fit .* 3 channels, 32 × 32"),
    ],
)
def test_bad_input_is_told(change, message):
    arguments = {"images": make_images(4), **change}
    with pytest.raises(ValueError, match=message):
        calibrate(insert(make_vit(), num_tokens=4), arguments.pop("images"), **arguments)


def test_the_merged_model_is_not_matched_to_itself():
    model = make_vit()
    with pytest.raises(ValueError, match=r"plain is the merged model itself.*leave it out"):
        calibrate(insert(model, 4, 2), make_images(4), plain=model)


def test_a_model_without_queries_is_told():
    with pytest.raises(ValueError, match=r"has no merger: patchmerger.insert\(model\) puts one in"):
        calibrate(make_vit(), make_images(4))
    pooled = insert(make_vit(), num_tokens=4, reducer=AveragePool(4))
    with pytest.raises(ValueError, match="is a AveragePool, which has no queries"):
        calibrate(copy.deepcopy(pooled), make_images(4))
