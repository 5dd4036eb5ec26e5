"""A model compared with the plain one, on constructed scores."""

import copy

import pytest
import torch

from patchmerger import insert
from patchmerger.acceleration import agreement, find_teacher
from patchmerger.acceleration.agreement import HeldOutScores, at_chance, compare_scores, scored_within, scores_of
from patchmerger.data import Preprocessing, load_images
from patchmerger.models.classifier import Classifier
from trained_on_digits import trained_vit

pytestmark = pytest.mark.usefixtures("one_thread")


def certain(classes, num_classes=3, how=8.0):
    return how * torch.nn.functional.one_hot(torch.tensor(classes), num_classes).float()


def test_accuracy_agreement_and_the_paired_difference():
    targets = torch.tensor([0, 1, 2, 0])
    result = compare_scores(certain([0, 1, 0, 1]), certain([0, 1, 2, 1]), targets)
    assert (result["accuracy"], result["agreement"], result["images"]) == (0.5, 0.75, 4)
    assert result["difference"]["mean"] == -0.25
    assert result["difference"]["over"] == "images"


def test_expected_calibration_error_is_confidence_less_accuracy_in_each_bin():
    scores = torch.log(torch.tensor([[0.9, 0.1]] * 10))  # one bin: 0.9 sure, 0.6 right
    targets = torch.tensor([0] * 6 + [1] * 4)
    assert compare_scores(scores, scores, targets)["ece"] == pytest.approx(0.3, abs=1e-6)


def test_without_labels_there_is_agreement_only():
    result = compare_scores(certain([0, 1, 2]), certain([0, 1, 1]), None)
    assert (result["accuracy"], result["ece"], result["difference"]) == (None, None, None)
    assert result["agreement"] == pytest.approx(2 / 3)
    assert compare_scores(certain([0]), certain([0]), None)["divergence"] == pytest.approx(0, abs=1e-6)


def test_several_labels_are_decisions_one_by_one():
    targets = torch.tensor([[1, 0], [0, 1]]).float()
    result = compare_scores(
        torch.tensor([[3.0, -3.0], [-3.0, -1.0]]), torch.tensor([[3.0, -3.0], [-3.0, 3.0]]), targets
    )
    assert result["agreement"] == 0.75
    assert result["accuracy"] == 1.0
    assert result["ece"] is None


def test_chance_is_told_from_knowledge():
    targets = torch.arange(1000) % 10
    noise = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    assert at_chance(noise, targets)
    assert not at_chance(noise + 0.5 * certain(targets.tolist(), 10, 1.0), targets)
    several = (torch.arange(400).view(100, 4) % 3 == 0).float()
    assert at_chance(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), several)
    assert not at_chance(several, several)


def test_the_most_frequent_class_alone_is_chance():
    """Where nine images of ten are of one class, to name it always is 90% right, and no knowledge."""
    targets = (torch.arange(1000) % 10 == 0).long()
    assert at_chance(certain([0] * 1000, 10, 1.0), targets)
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.1
    assert at_chance(certain(drawn.long().tolist(), 10, 1.0), targets)
    half = targets * (torch.arange(1000) % 20 == 0)  # a half of the rare class is found
    assert not at_chance(certain(half.tolist(), 10, 1.0), targets)


def test_of_images_of_one_class_nothing_is_said():
    assert not at_chance(certain([3] * 100, 10, 1.0), torch.full((100,), 3))


def test_classes_that_no_image_has_are_no_chance():
    several = (torch.arange(400).view(100, 4) % 3 == 0).float()
    noise = torch.randn(100, 40, generator=torch.Generator().manual_seed(0))
    assert at_chance(noise, torch.cat([several, torch.zeros(100, 36)], dim=1))


@pytest.mark.parametrize("cache_gib", [1.0, 1e-6])
def test_held_out_scores_are_those_of_the_whole_models(cache_gib, tmp_path, monkeypatch):
    images, teacher = load_images("digits", seed=0).test.subset(range(50)), find_teacher(trained_vit())
    options = {"batch_size": 16, "workers": 0, "progress": False}
    held = HeldOutScores(
        teacher, images, 2, tmp_path / "kept", cache_gib=cache_gib, device=torch.device("cpu"), **options
    )
    merged = insert(copy.deepcopy(teacher.model), num_tokens=4, after=2)
    expected = [scores_of(Classifier(net), images, teacher, **options) for net in (teacher.model, merged)]
    assert torch.allclose(held.of_plain(), expected[0], atol=1e-5)
    whole = []
    monkeypatch.setattr(agreement, "scores_of", lambda *args, **given: whole.append(1) or scores_of(*args, **given))
    assert torch.allclose(held.of_merged(merged, same_front=True), expected[1], atol=1e-5)
    assert len(whole) == (cache_gib < 1)
    with torch.no_grad():
        merged.blocks[0].mlp.fc1.weight.mul_(2)
    changed = held.of_merged(merged, same_front=False)
    assert torch.equal(changed, scores_of(Classifier(merged), images, teacher, **options))
    held.remove()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("seconds", "least", "expected"), [(1e-9, 10, 10), (1e9, 10, 360), (1e-9, 1000, 360)])
def test_as_many_images_are_scored_as_there_is_time_for(seconds, least, expected):
    teacher = find_teacher(trained_vit(), preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3))
    count = scored_within(
        seconds, Classifier(teacher.model), load_images("digits", seed=0).test, teacher, batch_size=8, workers=0,
        least=least,
    )  # fmt: skip
    assert count == expected
