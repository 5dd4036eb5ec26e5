"""A model that has seen what another seed holds out: whatever computes numbers on those images says so."""

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from conftest import make_vit
from patchmerger import few_shot, insert, save
from patchmerger.acceleration import RecoverySettings, accelerate
from patchmerger.data import DataSettings, Preprocessing, load_images
from patchmerger.data.loading import read_images
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.data.splits import split_images
from patchmerger.fewshot import FewShotSettings
from patchmerger.patterns import compare_patterns
from patchmerger.patterns.settings import PatternSettings
from patchmerger.runs.run_folder import RunFolder
from patchmerger.training import Recipe, TrainingSettings, evaluate, fit

FEW = FewShotSettings(shots=(1,), draws=1)
TOO_MANY = 10**6  # in a batch: refused once the images are known, and before anything is trained


@pytest.fixture
def run(tmp_path):
    """The folder of a run, as ``fit`` leaves it: trained on digits with seed 3."""
    folder = RunFolder(tmp_path / "run", {"data": DataSettings("digits"), "seed": 3})
    folder.begin()
    model = insert(make_vit(num_classes=10), 4)
    names = [str(digit) for digit in range(10)]
    save(model, folder.path / "model", preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3), class_names=names)
    return folder.path


def told(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in found if "trained on data" in str(each.message)]


def of(model, seed, source="digits", among=("test",), images="digits"):
    splits = load_images(images, seed=seed, labels_needed=False)
    return told(lambda: warn_of_seen(model, source, splits, seed=seed, among=among))


@pytest.mark.parametrize("place", ["", "model"])
def test_the_seed_of_a_run_is_named_where_another_holds_out_other_images(place, run):
    [message] = of(run / place, 0)
    assert f"model ({run / place})" in message
    assert "data (digits) with seed 3, and seed (0) holds out other test images" in message
    assert not of(run / place, 3)
    assert not of(run / place, 0, source="photos")
    assert not of("vit_tiny_patch16_224", 0)


def test_splits_that_the_data_has_are_those_of_every_seed(run, tmp_path):
    whole = load_images("digits", seed=0)
    given = {"train": whole.train, "test": whole.test}
    assert not of(run, 0, images=given)
    [message] = of(run, 0, images=given, among=("validation", "test"))
    assert "other validation images" in message


def test_the_share_for_validation_is_named_where_another_holds_out_other_images(run):
    both, more = ("validation", "test"), DataSettings("digits", validation=0.2)
    [message] = of(run, 3, among=both, images=more)
    assert "with data.validation 0.1, and data.validation (0.2) holds out other validation images" in message
    assert "give data.validation 0.1" in message
    assert not of(run, 3, images=more)  # of images with labels, the test set is the same for all shares
    [message] = of(run, 0, among=both, images=more)
    assert "seed (0) with data.validation (0.2) holds out other validation and test images" in message
    assert "give seed 3 and data.validation 0.1" in message
    [message] = of(run, 0, images=more)
    assert "give seed 3" in message
    assert "data.validation" not in message


def test_of_images_without_labels_the_share_moves_the_test_set_too(run):
    digits = read_images(DataSettings("digits", validation=0.2))
    [message] = of(run, 3, images=split_images(replace(digits, class_names=()), seed=3))
    assert "other test images" in message


def test_a_folder_by_another_path_is_the_same_data_and_a_file_of_anothers_is_no_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    folder = RunFolder(Path("photographed"), {"data": DataSettings("photos"), "seed": 3})
    folder.begin()
    assert of("photographed", 0, source=f"{tmp_path}/photos/")
    assert of("photographed", 0, source="./photos")
    assert not of("photographed", 0, source="pictures")
    (run / "settings.json").write_text('{"seed": 3, "data": {"source": "digits"}}')
    assert not of(run, 0)


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("what", ["evaluate", "few_shot", "patterns", "accelerate", "fit"])
def test_whatever_computes_numbers_on_them_says_so(what, seed, run, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "out"
    RunFolder(plain, {"data": DataSettings("digits"), "seed": 3}).begin()
    names = [str(digit) for digit in range(10)]
    given = Preprocessing((0.5,) * 3, (0.5,) * 3)
    save(make_vit(num_classes=10), plain / "model", preprocessing=given, class_names=names)
    quiet = {"progress": False, "seed": seed}
    recipe = Recipe(init=str(run), training=TrainingSettings(batch_size=TOO_MANY))

    def refused(call):
        with pytest.raises(ValueError, match=f"{TOO_MANY}"):
            call()

    calls = {
        "evaluate": lambda: evaluate(run, "digits", accelerator="cpu", **quiet),
        "few_shot": lambda: few_shot(run, "digits", FEW, device="cpu", **quiet),
        "patterns": lambda: compare_patterns(
            [run, tmp_path / "plain"], "digits", PatternSettings(images=10, seed=seed), device="cpu", progress=False
        ),
        "accelerate": lambda: refused(
            lambda: accelerate(plain, "digits", recovery=RecoverySettings(batch_size=TOO_MANY), out=out, **quiet)
        ),
        "fit": lambda: refused(partial(fit, recipe, "digits", out=out, **quiet)),
    }
    assert bool(told(calls[what])) == (seed != 3)
