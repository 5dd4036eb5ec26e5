from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from patchmerger.data import (
    Augmentation,
    DataSettings,
    as_data_settings,
    default_augmentation,
    load_images,
    read_images,
    split_images,
)


def test_digits_in_three() -> None:
    splits = load_images(DataSettings(), seed=1)
    assert splits.validation is not None
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1293, 144, 360)
    assert not splits.multi_label
    assert splits.description == (
        "digits: 1,293 training, 144 validation, 360 test images of 10 classes; "
        "test set is fold 2 of 5 of train, validation set is 0.1 of train (seed 1)"
    )


def test_seeds_share_what_was_read() -> None:
    images = read_images(DataSettings(validation=0))
    first, second = split_images(images, seed=0), split_images(images, seed=1)
    assert first.train.images is second.train.images
    assert first.validation is None


def test_every_setting_is_explained_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(DataSettings, "data")
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for words in ("first looked for in the folder", "share of the training images", '"skip" leaves it out'):
        assert words in text
    made = parser.instantiate(parser.parse_args(["--data.source=a/b", "--data.memory_gib=0.5"]))
    assert made.data == DataSettings("a/b", memory_gib=0.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation": 0.7}, r"validation \(0\.7\).* from 0 to 0\.5"),
        ({"crop_pct": 1.1}, r"crop_pct \(1\.1\).* at most 1"),
        ({"bad_files": "ignore"}, r"bad_files \('ignore'\) must be one of 'error', 'skip'"),
        ({"memory_gib": -1}, r"memory_gib \(-1\).* 0 or more"),
        ({"memory_gib": float("nan")}, r"memory_gib \(nan\).* 0 or more"),
        ({"workers": -1}, r"workers \(-1\).* 0 or more"),
        ({"shuffle_buffer": 0}, r"shuffle_buffer \(0\).* at least 1"),
        ({"max_pixels": 0}, r"max_pixels \(0\).* from 1 to 178956970"),
        ({"max_pixels": 10**9}, r"max_pixels \(1000000000\).* Pillow"),
        ({"layout": "flat"}, r"layout \('flat'\) must be one of 'auto', 'classes', 'splits'"),
        ({"samples": 5}, r"samples \(5\).* streaming to true"),
        ({"samples": 0, "streaming": True}, r"samples \(0\).* at least 1"),
    ],
)
def test_settings_are_checked_when_they_are_made(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "random"}, r"crop \('random'\) must be one of 'pad', 'resized', 'none'"),
        ({"auto": "auto"}, r"auto \('auto'\) must be one of 'trivial', 'rand'"),
        ({"scale": (0.5, 0.2)}, r"scale \(\(0\.5, 0\.2\)\).*smallest <= largest"),
        ({"erasing": 1.5}, r"erasing \(1\.5\).* probability"),
    ],
)
def test_augmentation_is_checked_when_it_is_made(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong)


def test_a_word_is_a_source() -> None:
    assert as_data_settings("digits") == DataSettings("digits")
    assert as_data_settings(Path("some/folder")) == DataSettings("some/folder")
    assert as_data_settings(Path("digits")) == DataSettings("./digits")
    assert as_data_settings(DataSettings(validation=0)) == DataSettings(validation=0)
    with pytest.raises(TypeError, match=r"data \(int\) must be a source"):
        as_data_settings(3)  # type: ignore[arg-type]


def test_writing_is_not_flipped() -> None:
    assert not default_augmentation("digits").flip
    assert not default_augmentation("torchvision:SVHN").flip
    padded = Augmentation("pad", flip=True)
    assert default_augmentation("torchvision:CIFAR10") == default_augmentation("some/folder") == padded


@pytest.mark.parametrize("source", ["digits", "torchvision:EMNIST", "torchvision:CIFAR10", "some/folder"])
def test_an_option_that_is_given_alone_leaves_the_others_as_the_source_has_them(source: str) -> None:
    default = default_augmentation(source)
    for given in ({"erasing": 0.3}, {"auto": "rand"}, {"scale": (0.5, 1.0)}, {"crop": "resized"}, {"flip": True}):
        assert Augmentation(**given).resolved(source) == replace(default, **given)  # type: ignore[arg-type]
