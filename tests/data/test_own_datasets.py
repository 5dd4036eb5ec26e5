"""People's own datasets: of torch, of the Hugging Face library, behind a DataLoader; floats are left alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchvision.datasets import ImageFolder

from patchmerger.data import (
    Augmentation,
    DataSettings,
    ImageData,
    Preprocessing,
    has_labels,
    identify_data,
    load_images,
    read_images,
)
from patchmerger.data.loading import recorded_data, to_read
from patchmerger.data.own_datasets import as_image

from .conftest import picture

HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)


def pixels(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(seed, size=(8, 8)))).permute(2, 0, 1)


class Pairs(Dataset[Any]):
    """Images as ``form`` makes them, with the labels 0 and 1 in turn."""

    def __init__(self, form: Callable[[int], Any], count: int = 40, label: Callable[[int], Any] = lambda i: i % 2):
        self.form, self.count, self.label = form, count, label

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.form(index), self.label(index)


class Dicts(Pairs):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


FORMS: dict[str, Callable[[int], Any]] = {
    "PIL": lambda i: picture(i, size=(8, 8)),
    "uint8 tensor": pixels,
    "uint8 array": lambda i: np.array(picture(i, size=(8, 8))),
    "undecoded": lambda i: {"bytes": encoded(i), "path": None},
    "bytes": lambda i: encoded(i),
}


def encoded(seed: int) -> bytes:
    import io

    file = io.BytesIO()
    picture(seed, size=(8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", [Pairs, Dicts])
@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_of_torch(form: str, kind: type[Pairs]) -> None:
    splits = load_images(kind(FORMS[form]), seed=0)
    assert splits.class_names == ("0", "1")
    assert (len(splits.train), len(splits.test)) == (28, 8)
    for images in (splits.train, splits.test):
        for index, row in enumerate(images.rows):
            assert torch.equal(images[index], pixels(row))
            assert int(images.targets[index]) == row % 2


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        (lambda i: bool(i % 2), ("False", "True"), 1),
        (lambda i: np.int64(i % 2 + 3), ("3", "4"), 1),
        (lambda i: torch.tensor(i % 2), ("0", "1"), 1),
        (lambda i: float(i % 2), ("0", "1"), 1),
        (lambda i: ["cat", "dog"][i % 2], ("cat", "dog"), 1),
    ],
)
def test_labels_of_every_type(label: Callable[[int], Any], names: tuple[str, ...], number: int) -> None:
    images = read_images(Pairs(pixels, label=label))
    assert images.class_names == names
    assert images.sets["train"].targets.tolist() == [0, number] * 20


def test_several_labels_an_image() -> None:
    images = read_images(Pairs(pixels, label=lambda i: torch.tensor([1.0, i % 2, 0.0])))
    assert images.class_names == ("0", "1", "2")
    assert images.sets["train"].targets[:2].tolist() == [[1, 0, 0], [1, 1, 0]]


def test_floats_are_passed_on_as_they_are() -> None:
    values = torch.randn(40, 3, 8, 8)
    splits = load_images(TensorDataset(values, torch.arange(40) % 2), seed=0)
    data = ImageData(
        splits, image_size=8, preprocessing=HALF, batch_size=4, epochs=1, workers=0,
        augmentation=Augmentation(crop="resized", auto="rand", erasing=1.0),
    )  # fmt: skip
    images, _ = next(iter(data.test_dataloader()))
    assert torch.equal(images, values[splits.test.rows[:4]])
    images, targets = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    assert all(any(torch.equal(image, value) for value in values) for image in images)
    assert len(targets) == 4
    other = ImageData(splits, image_size=16, preprocessing=HALF, batch_size=4, epochs=1, workers=0)
    with pytest.raises(ValueError, match=r"floats .* \(3, 8, 8\) is not \(3, 16, 16\): resize them"):
        next(iter(other.test_dataloader()))


def test_what_a_dataset_draws_at_random_stays_random() -> None:
    drawn = Pairs(lambda _: torch.full((3, 8, 8), random.randrange(256), dtype=torch.uint8))
    splits = load_images(drawn, seed=0)
    data = ImageData(
        splits, image_size=8, preprocessing=HALF, batch_size=28, epochs=2, workers=0,
        augmentation=Augmentation(crop="none", flip=False),
    )  # fmt: skip
    first, second = (images for images, _ in data.train_dataloader())
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    again = next(iter(data.train_dataloader()))[0]
    assert torch.equal(first, again)


def test_splits_in_a_dict_and_names_of_classes(class_folders: Callable[..., Any]) -> None:
    folder = ImageFolder(class_folders(count=20))
    sets = {"train": Subset(folder, range(0, 40, 2)), "test": Subset(folder, range(1, 40, 2))}
    splits = load_images(sets, seed=0)
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.test)) == (18, 20)
    assert splits.test.targets.tolist() == [0] * 10 + [1] * 10
    assert identify_data(sets).source == "ImageFolder"
    both = ConcatDataset([sets["train"], sets["test"]])
    assert sorted(read_images(both).sets["train"].targets.tolist()) == [0] * 20 + [1] * 20


def test_a_target_transform_is_not_overlooked(class_folders: Callable[..., Any]) -> None:
    folder = ImageFolder(class_folders(count=10), target_transform=lambda label: 1 - label)
    assert read_images(folder).sets["train"].targets.tolist() == [1] * 10 + [0] * 10

    seen = set()

    class Mapped(ImageFolder):
        def __getitem__(self, index: int) -> Any:
            seen.add(index)
            return super().__getitem__(index)

    read_images(Mapped(folder.root, target_transform=lambda label: label))
    assert seen == set(range(20))  # where labels may be others than those that are kept, each is asked for


def hugging_face(count: int = 40, **columns: Any) -> datasets.Dataset:
    features = {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    rows = {"photo": [picture(i, size=(8, 8)) for i in range(count)], "kind": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def test_a_dataset_of_hugging_face() -> None:
    table = hugging_face()
    for data in (table, datasets.DatasetDict({"train": table}), table.with_format("torch")):
        images = read_images(data)
        assert images.class_names == ("cat", "dog")
        assert torch.equal(images.sets["train"][5], pixels(5))
        assert images.sets["train"].targets.tolist() == [0, 1] * 20
    with pytest.raises(ValueError, match="'extra' is not train, validation or test"):
        read_images(datasets.DatasetDict({"train": table, "extra": table}))


def test_a_transform_of_hugging_face_is_kept() -> None:
    def prepare(rows: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [torch.zeros(3, 8, 8) + 7 for _ in rows["photo"]], "label": rows["kind"]}

    images = read_images(hugging_face().with_transform(prepare))
    assert torch.equal(images.sets["train"][0], torch.full((3, 8, 8), 7.0))


def test_of_a_loader_the_dataset_is_taken_and_this_is_said() -> None:
    pairs = Pairs(pixels)
    with pytest.warns(UserWarning, match=r"DataLoader.*dataset is taken"):
        images = read_images(DataLoader(pairs, batch_size=4, shuffle=True))
    assert len(images.sets["train"]) == 40


def test_batches_of_a_sampler_of_ones_own_are_refused() -> None:
    some = BatchSampler(SubsetRandomSampler(range(20)), 4, drop_last=False)
    with pytest.raises(TypeError, match=r"data \(DataLoader\) has a batch_sampler of its own.*give its dataset"):
        read_images(DataLoader(Pairs(pixels), batch_sampler=some))


def test_images_without_labels() -> None:
    plain = [pixels(i) for i in range(20)]
    assert not has_labels(plain)
    assert has_labels(Pairs(pixels))
    splits = load_images(plain, seed=0, labels_needed=False)
    assert (len(splits.train), len(splits.test), splits.class_names) == (16, 2, ())
    with pytest.raises(ValueError, match="images without labels"):
        load_images(plain, seed=0)
    unlabelled = hugging_face().remove_columns("kind")
    assert not has_labels(unlabelled)
    assert torch.equal(read_images(unlabelled, labels_needed=False).sets["train"][3], pixels(3))


def test_splits_pass_through_and_digits_are_a_word() -> None:
    splits = load_images("digits", seed=0)
    assert load_images(splits, seed=1) is splits
    assert identify_data("digits") == DataSettings("digits")


def test_the_same_images_have_the_same_identity_everywhere() -> None:
    ours = identify_data(TensorDataset(torch.arange(20.0).view(20, 1, 1, 1).expand(20, 3, 4, 4), torch.arange(20)))
    assert ours.sha256.startswith("4e212532a93d")  # type: ignore[union-attr]
    assert ours.images == {"train": 20}  # type: ignore[union-attr]
    drawn = Pairs(lambda _: torch.full((3, 8, 8), random.randrange(256), dtype=torch.uint8))
    assert identify_data(drawn) == identify_data(drawn)
    assert identify_data(Pairs(pixels)) != identify_data(Pairs(pixels, label=lambda i: i % 3))
    assert identify_data(Pairs(pixels)) != identify_data(Pairs(lambda i: pixels(i + 1)))
    assert identify_data(hugging_face()) == identify_data(hugging_face())
    assert identify_data(load_images("digits", seed=0)) != identify_data(load_images("digits", seed=1))


def test_settings_beside_images_are_done_or_refused() -> None:
    pairs, given = Pairs(pixels), DataSettings(workers=2, crop_pct=0.9, validation=0.25)
    recorded = recorded_data(pairs, given)
    assert (recorded.workers, recorded.crop_pct, recorded.validation) == (2, 0.9, 0.25)
    splits = load_images(to_read(pairs, recorded), seed=0, validation=recorded.validation)
    assert (len(splits.train), len(splits.validation or ())) == (24, 8)
    assert load_images(pairs, seed=0, validation=0).validation is None
    assert recorded_data("photos", DataSettings(layout="classes")) == DataSettings("photos", layout="classes")
    assert recorded_data(DataSettings("photos"), DataSettings(workers=2)) == DataSettings("photos")
    whole = read_images(pairs)
    assert recorded_data(whole, DataSettings()) != recorded_data(replace(whole, validation=0.2), DataSettings())
    for data, settings, message in [
        (pairs, DataSettings(bad_files="skip"), r"data\.bad_files \('skip'\) .* ignored .*\(Pairs\): leave it out"),
        (whole, given, r"data\.validation \(0\.25\) .* ignored .*\(Pairs\)"),
        (splits, given, r"data\.validation \(0\.25\) .* ignored .*\(ImageSplits\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            recorded_data(data, settings)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield pixels(0), 0


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (7, TypeError, r"data \(int\) must be .*DataSettings.*torch Dataset"),
        ((Pairs(pixels), Pairs(pixels)), TypeError, r"data \(tuple\) must be .*dict of datasets"),
        (torch.zeros(4, 3, 8, 8), TypeError, r"data \(Tensor\).*TensorDataset"),
        (Stream(), TypeError, r"data \(Stream\) .*in order only.*streaming=True"),
        (hugging_face().to_iterable_dataset(), TypeError, r"in order only"),
        (DataLoader(Pairs(pixels), collate_fn=list), TypeError, r"collate_fn of its own.*give its dataset"),
        (DataLoader(Pairs(pixels), sampler=WeightedRandomSampler([1.0] * 40, 40)), TypeError, r"a sampler of its own"),
        ({"test": Pairs(pixels)}, ValueError, r"the splits test: train is needed"),
        ({"train": Pairs(pixels), "extra": Pairs(pixels)}, ValueError, r"'extra' is not train"),
        (Pairs(pixels, count=0), ValueError, r"Pairs train is empty"),
        (Pairs(lambda _: "gone.png"), ValueError, r"image 0 of Pairs train cannot be decoded: does not exist"),
        (Pairs(lambda _: torch.zeros(3, 8, 8, dtype=torch.int64)), TypeError, r"torch\.int64.*uint8"),
        (Pairs(lambda _: torch.zeros(5, 8, 8)), TypeError, r"shape \(5, 8, 8\)"),
        (Pairs(lambda _: None), TypeError, r"image 0 of Pairs train is of NoneType.*PIL"),
        ([(pixels(0), 1, 2)], TypeError, r"has 3 parts: \(image, label\)"),
        ([{"x": 1}], TypeError, r"the keys x: one of image, pixel_values"),
        (Pairs(pixels, label=lambda i: i / 8), ValueError, r"not whole \(0\.125\)"),
        (Pairs(pixels, label=lambda i: None if i == 3 else 1), ValueError, r"1 of 40 images have none"),
        (Pairs(pixels, label=lambda i: "a" if i else 1), ValueError, r"int and str: labels must be of one type"),
        (Pairs(pixels, label=lambda _: {"boxes": []}), ValueError, r"holds dict, not class labels"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_name(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_images(data)


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (8, 6, 1), (4, 8, 6), (8, 6, 4), (3, 8, 6), (8, 6, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_arrays_of_any_layout(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for image in (torch.ones(shape, dtype=dtype), torch.ones(shape, dtype=dtype).numpy()):
        made = as_image(image, "it")
        assert made.shape == (3, 8, 6)
        assert made.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)


def test_a_picture_of_ones_own_is_not_changed() -> None:
    image = Image.new("RGB", (8, 4))
    image.getexif()[0x0112] = 6
    for _ in range(2):
        assert as_image(image, "it").shape == (3, 8, 4)
    assert image.size == (8, 4)
