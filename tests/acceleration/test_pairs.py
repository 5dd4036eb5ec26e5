"""A student and a teacher that are no pair are refused before any training, with the cure."""

import copy

import pytest

from acceleration.test_distillation import AS_THEY_ARE
from conftest import make_vit
from patchmerger import distill, insert
from patchmerger.acceleration import distillation
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data import DataSettings, load_images

SETTINGS = {"batch_size": 64, "accelerator": "cpu", "steps": 1}


@pytest.fixture(scope="module")
def digits():
    return load_images(DataSettings(), seed=0)


def plain(**options):
    return make_vit("registers, LayerScale", **{"num_classes": 10, **options})


def in_place():
    teacher = plain()
    return insert(teacher, 4, 2), teacher


def some_shared():
    teacher = plain()
    student = insert(copy.deepcopy(teacher), 4, 2)
    student.head = teacher.head
    return student, teacher


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (in_place, r"student and teacher share weights.*insert\(copy.deepcopy\(teacher\), …\)"),
        (some_shared, "student and teacher share weights"),
        (lambda: (insert(plain(), 4, 2), plain(num_classes=5)), "student gives 10 scores, teacher 5"),
        (
            lambda: (insert(plain(), 4, 2), plain(img_size=48)),
            "student takes images of 32 × 32 pixels, teacher of 48 × 48",
        ),
        (
            lambda: (insert(plain(), 4, 2), plain(embed_dim=64)),
            r"recovery.feature_weight \(1\) compares 32 features.*64",
        ),
        (
            lambda: (insert(plain(num_classes=5), 4, 2), plain(num_classes=5)),
            "data has 10 classes, but student gives 5",
        ),
        (
            lambda: (insert(plain(num_classes=20), 4, 2), plain(num_classes=20)),
            "data has 10 classes, but student gives 20",
        ),
    ],
)
@pytest.mark.parametrize("scope", ["rear", "all"])
def test_what_is_no_pair_is_refused(make, message, scope, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "RecoveryJob", lambda *_: pytest.fail("it began"))
    student, teacher = make()
    with pytest.raises(ValueError, match=message):
        distill(
            student,
            teacher,
            digits,
            recovery=RecoverySettings(scope=scope, **SETTINGS),
            out=tmp_path / "run",
            **AS_THEY_ARE,
        )
    assert not (tmp_path / "run").exists()


def test_without_labels_and_features_teachers_of_other_widths_and_heads_for_other_data_do(digits):
    student, teacher = insert(plain(num_classes=5), 4, 2), plain(num_classes=5, embed_dim=64)
    settings = RecoverySettings(scope="all", feature_weight=0.0, **SETTINGS)
    assert (
        distill(student, teacher, digits, recovery=settings, labels=False, progress=False, **AS_THEY_ARE)["steps"] == 1
    )
