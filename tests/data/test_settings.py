import subprocess
import sys

import jsonargparse
import pytest

from patchmerger.data import DataSettings, load_images, read_images, split_images


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


def test_importing_patchmerger_leaves_the_data_room_alone() -> None:
    code = "import sys, patchmerger; print('patchmerger.data' in sys.modules or 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
