import pytest
import torch

from patchmerger.data import ImageDataset, ImageSet, ImageSplits, split_images
from patchmerger.data.images import InMemory

NAMES = ("cat", "dog", "fox")


def divide(
    sets: dict[str, ImageSet], class_names: tuple[str, ...], *, validation: float = 0.1, seed: int = 0
) -> ImageSplits:
    return split_images(ImageDataset("numbers", sets, class_names, validation), seed=seed)


def numbered(counts: tuple[int, ...], first: int = 0) -> ImageSet:
    """Images that hold their own number, ``counts`` of each class."""
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = [torch.full((3, 1, 1), (first + i) % 256, dtype=torch.uint8) for i in range(len(targets))]
    return ImageSet(InMemory(images), targets)


def numbers(images: ImageSet | None) -> list[int]:
    assert images is not None
    return [int(images[i][0, 0, 0]) for i in range(len(images))]


def test_given_splits_are_taken_as_they_are() -> None:
    sets = {"train": numbered((4, 4, 4)), "validation": numbered((2, 2, 2), 50), "test": numbered((1, 1, 1), 90)}
    divided = divide(sets, NAMES)
    assert divided.train is sets["train"]
    assert divided.validation is sets["validation"]
    assert divided.test is sets["test"]


def test_validation_is_held_out_in_the_classes_proportions() -> None:
    sets = {"train": numbered((80, 40, 20)), "test": numbered((1, 1, 1), 200)}
    divided = divide(sets, NAMES, seed=3)
    assert divided.validation is not None
    assert divided.validation.targets.bincount().tolist() == [8, 4, 2]
    assert sorted(numbers(divided.train) + numbers(divided.validation)) == list(range(140))
    assert numbers(divide(sets, NAMES, seed=3).validation) == numbers(divided.validation)
    assert numbers(divide(sets, NAMES, seed=4).validation) != numbers(divided.validation)


def test_a_lone_validation_split_is_the_test_set() -> None:
    sets = {"train": numbered((40, 40, 40)), "validation": numbered((2, 2, 2), 200)}
    divided = divide(sets, NAMES)
    assert divided.test is sets["validation"]
    assert len(numbers(divided.validation)) == 12
    assert set(numbers(divided.validation)).isdisjoint(numbers(divided.train))


@pytest.mark.parametrize("first", [0, 5])
def test_five_seeds_test_every_image_once(first: int) -> None:
    tested: list[int] = []
    for seed in range(first, first + 5):
        divided = divide({"train": numbered((40, 25, 15))}, NAMES, seed=seed)
        assert divided.test.targets.bincount().tolist() == [8, 5, 3]
        parts = numbers(divided.train) + numbers(divided.validation) + numbers(divided.test)
        assert sorted(parts) == list(range(80))
        tested += numbers(divided.test)
    assert sorted(tested) == list(range(80))


def test_five_more_seeds_are_divided_anew() -> None:
    sets = {"train": numbered((40, 25, 15))}
    assert numbers(divide(sets, NAMES, seed=0).test) != numbers(divide(sets, NAMES, seed=5).test)


def test_no_validation() -> None:
    divided = divide({"train": numbered((10, 10, 10))}, NAMES, validation=0)
    assert divided.validation is None
    assert (len(divided.train), len(divided.test)) == (24, 6)
    assert "no validation set" in divided.description


def test_several_labels_an_image() -> None:
    targets = torch.eye(3).repeat(20, 1)
    images = ImageSet(InMemory([torch.full((3, 1, 1), i, dtype=torch.uint8) for i in range(60)]), targets)
    divided = divide({"train": images}, NAMES)
    assert sorted(numbers(divided.train) + numbers(divided.validation) + numbers(divided.test)) == list(range(60))
    assert divided.test.targets.shape == (12, 3)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="numbers has no training split; found: test"):
        divide({"test": numbered((1, 1))}, NAMES[:2])
    with pytest.raises(ValueError, match=r"seed \(-1\) must be 0 or more"):
        divide({"train": numbered((9, 9))}, NAMES[:2], seed=-1)
    with pytest.raises(ValueError, match=r"there is only one class \(cat\)"):
        divide({"train": numbered((9,))}, NAMES[:1])
    with pytest.raises(ValueError, match="no training images of 1 of 3 classes: fox"):
        divide({"train": numbered((9, 9))}, NAMES)
    with pytest.raises(ValueError, match="the test split has no images"):
        divide({"train": numbered((9, 9)), "test": numbered((0, 0))}, NAMES[:2])
    with pytest.raises(ValueError, match="class numbers from 0 to 2, but there are 2 classes"):
        divide({"train": numbered((9, 9, 9))}, NAMES[:2])
    with pytest.raises(ValueError, match="class 'dog' has 4 training images, but 5 are needed"):
        divide({"train": numbered((9, 4))}, NAMES[:2])
    with pytest.raises(ValueError, match="class 'dog' has 1 training images, but 2 are needed"):
        divide({"train": numbered((9, 1)), "test": numbered((1, 1))}, NAMES[:2])
    with pytest.raises(ValueError, match=r"validation=0\.1 of 12 images is fewer than one .* take at least 0\.17"):
        divide({"train": numbered((6, 6)), "test": numbered((1, 1))}, NAMES[:2])
