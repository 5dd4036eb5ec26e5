import pickle
import random

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from patchmerger.data import Augmentation, EvalTransform, TrainTransform, default_augmentation
from patchmerger.data.transforms import PadCrop


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("auto", [None, "trivial", "rand"])
@pytest.mark.parametrize("size", [(32, 32), (20, 33), (70, 41)])
def test_any_image_comes_out_as_uint8_of_the_size(crop: str, auto: str | None, size: tuple[int, int]) -> None:
    augmentation = Augmentation(crop=crop, auto=auto, erasing=0.5)  # type: ignore[arg-type]
    transform = pickle.loads(pickle.dumps(TrainTransform(32, augmentation)))
    for _ in range(3):
        result = transform(noise(*size))
        assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 32, 32))


def test_pad_crop_gives_what_torchvision_gives() -> None:
    image = noise(8, 8)
    reference, ours = v2.RandomCrop(8, padding=1), PadCrop(8)
    wanted = {tuple(reference(image).flatten().tolist()) for _ in range(200)}
    assert {tuple(ours(image).flatten().tolist()) for _ in range(200)} == wanted
    assert len(wanted) == 9


def test_flips_half_of_the_images() -> None:
    image = noise(8, 8)
    transform = TrainTransform(8, Augmentation(crop="none"))
    random.seed(0)
    flipped = 0
    for _ in range(400):
        result = transform(image)
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))
        flipped += torch.equal(result, image.flip(-1))
    assert 150 < flipped < 250


def test_nothing_asked_for_changes_nothing() -> None:
    image = noise(8, 8)
    assert torch.equal(TrainTransform(8, Augmentation(crop="none", flip=False))(image), image)


def test_writing_is_not_flipped() -> None:
    assert not default_augmentation("digits").flip
    assert not default_augmentation("torchvision:SVHN").flip
    assert default_augmentation("torchvision:CIFAR10") == default_augmentation("some/folder") == Augmentation()


def test_evaluation_resizes_the_shorter_side_and_crops_the_middle() -> None:
    image = noise(60, 100)
    resized = v2.functional.resize(image, [36], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(EvalTransform(32, 0.9)(image), v2.functional.center_crop(resized, [32, 32]))


def test_evaluation_leaves_alone_what_fits() -> None:
    image = noise(32, 32)
    assert EvalTransform(32)(image) is image
    assert EvalTransform(32).keeps((32, 32))
    assert not EvalTransform(32).keeps((32, 40))
    assert not EvalTransform(32).keeps(None)
    assert not EvalTransform(32, 0.9).keeps((32, 32))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match='crop must be "pad", "resized" or "none", got \'random\''):
        Augmentation(crop="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='auto must be None, "trivial" or "rand", got \'auto\''):
        Augmentation(auto="auto")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale must be two shares"):
        Augmentation(scale=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"erasing must be a probability, got 1\.5"):
        Augmentation(erasing=1.5)
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        TrainTransform(0, Augmentation())
    with pytest.raises(ValueError, match=r"crop_pct must be above 0 and at most 1, got 1\.1"):
        EvalTransform(8, 1.1)
