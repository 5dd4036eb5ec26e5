"""Datasets of torchvision by name: those that take more than a folder and a split are opened too, or refused."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from patchmerger.data import DataSettings, read_images
from patchmerger.data.sources import open_source

from .conftest import picture


@pytest.fixture(autouse=True)
def _no_shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATCHMERGER_DATA", raising=False)


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1)


def test_torchvision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs root"):
        open_source(DataSettings("torchvision:CIFAR10"))
    with pytest.raises(ValueError, match=r"torchvision\.datasets has no dataset 'CIFAR11'; it has .*CIFAR10"):
        open_source(DataSettings("torchvision:CIFAR11", root=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"missing: .*data_batch_1, .*from torchvision.datasets import CIFAR10"):
        open_source(DataSettings("torchvision:CIFAR10", root=str(tmp_path)))


def test_torchvision_with_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "eurosat" / "2750"
    for number, label in enumerate(("Forest", "River")):
        (folder / label).mkdir(parents=True)
        for index in range(3):
            picture(10 * number + index).save(folder / label / f"{index}.png")
    images = read_images(DataSettings("torchvision:EuroSAT", root=str(tmp_path)))
    assert images.class_names == ("Forest", "River")
    assert images.sets["train"].targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.sets["train"][4], pixels(11))


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files: a magic number, the sizes, the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    code = {np.dtype("uint8"): 8, np.dtype("int32"): 12}[values.dtype]
    header = np.array([code * 256 + values.ndim, *values.shape], ">i4")
    path.write_bytes(header.tobytes() + values.astype(values.dtype.newbyteorder(">")).tobytes())


def grey(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize(("subset", "first", "classes"), [("letters", 1, "abcdefgh"), ("digits", 0, "0123456789")])
def test_emnist_is_opened_by_its_subset(tmp_path: Path, subset: str, first: int, classes: str) -> None:
    raw, count = tmp_path / "EMNIST" / "raw", 2 * len(classes)
    labels = (np.arange(count) % len(classes) + first).astype(np.uint8)
    for split in ("train", "test"):
        write_idx(raw / f"emnist-{subset}-{split}-images-idx3-ubyte", grey(count))
        write_idx(raw / f"emnist-{subset}-{split}-labels-idx1-ubyte", labels)
    images = read_images(DataSettings("torchvision:EMNIST", root=str(tmp_path), subset=subset))
    assert {name: len(split) for name, split in images.sets.items()} == {"train": count, "test": count}
    assert images.class_names == tuple(classes)  # no class for a number that no image has
    assert images.sets["test"].targets.tolist() == [*range(len(classes))] * 2
    assert torch.equal(images.sets["train"][3][0], torch.from_numpy(grey(count)[3]))


def test_qmnist_has_the_classes_of_its_items_not_all_that_it_keeps_of_them(tmp_path: Path) -> None:
    raw = tmp_path / "QMNIST" / "raw"
    for split in ("train", "test"):
        write_idx(raw / f"qmnist-{split}-images-idx3-ubyte", grey(20))
        kept = np.random.default_rng(0).integers(0, 99, (20, 8)).astype(np.int32)
        kept[:, 0] = np.arange(20) % 10
        write_idx(raw / f"qmnist-{split}-labels-idx2-int", kept)
    images = read_images(DataSettings("torchvision:QMNIST", root=str(tmp_path)))
    assert (len(images.class_names), list(images.sets)) == (10, ["train", "test"])
    assert images.sets["train"].targets.tolist() == [*range(10)] * 2


def test_what_is_needed_beside_a_folder_is_said(tmp_path: Path) -> None:
    for source, subset, message in [
        ("EMNIST", None, r"subset \(None\) must say which .*EMNIST: byclass, .*letters"),
        ("EMNIST", "leters", r"subset \('leters'\) must say which"),
        ("CIFAR10", "small", r"subset \('small'\) must be left out: torchvision:CIFAR10"),
        ("CocoDetection", None, r"CocoDetection needs annFile as well as a folder.*make the dataset in Python"),
        ("FakeData", None, r"FakeData reads no files"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(DataSettings(f"torchvision:{source}", root=str(tmp_path), subset=subset))


def test_the_cure_fetches_the_split_that_is_missing(tmp_path: Path) -> None:
    for source, subset, call in [
        ("SVHN", None, "split='train', download=True"),
        ("EMNIST", "letters", "split='letters', train=True, download=True"),
    ]:
        with pytest.raises(FileNotFoundError, match=f"import {source}; {source}.*{call}"):
            open_source(DataSettings(f"torchvision:{source}", root=str(tmp_path), subset=subset))


@pytest.mark.parametrize("name", [n for n in torchvision.datasets.__all__ if n[0].isupper()])
def test_every_dataset_of_torchvision_says_what_it_lacks(name: str, tmp_path: Path) -> None:
    kind = getattr(torchvision.datasets, name)
    assert inspect.isclass(kind)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        open_source(DataSettings(f"torchvision:{name}", root=str(tmp_path)))
