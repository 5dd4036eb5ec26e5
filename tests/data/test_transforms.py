"""How images are cut and resized: as torchvision, PIL and timm do it."""

import pickle
import random
from dataclasses import replace
from typing import get_args

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import v2

from patchmerger.data import Augmentation, EvalTransform, Preprocessing, TrainTransform, normalize
from patchmerger.data.preprocessing import INTERPOLATIONS, CropMode


def half(crop_pct: float = 1.0, interpolation: str = "bicubic") -> Preprocessing:
    return Preprocessing((0.5,) * 3, (0.5,) * 3, crop_pct, interpolation)


def noise(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("auto", [None, "trivial", "rand"])
@pytest.mark.parametrize("size", [(32, 32), (20, 33), (70, 41)])
def test_any_image_comes_out_as_uint8_of_the_size(crop: str, auto: str | None, size: tuple[int, int]) -> None:
    augmentation = Augmentation(crop=crop, auto=auto, erasing=0.5)  # type: ignore[arg-type]
    transform = pickle.loads(pickle.dumps(TrainTransform(32, augmentation, half())))
    for _ in range(3):
        result = transform(noise(*size))
        assert (result.dtype, tuple(result.shape)) == (torch.uint8, (3, 32, 32))


def test_pad_crop_gives_what_torchvision_gives() -> None:
    image = noise(8, 8)
    reference, ours = v2.RandomCrop(8, padding=1), TrainTransform(8, Augmentation("pad", flip=False), half())
    wanted = {tuple(reference(image).flatten().tolist()) for _ in range(200)}
    assert {tuple(ours(image).flatten().tolist()) for _ in range(200)} == wanted
    assert len(wanted) == 9


def test_flips_half_of_the_images() -> None:
    image = noise(8, 8)
    transform = TrainTransform(8, Augmentation(crop="none"), half())
    random.seed(0)
    flipped = 0
    for _ in range(400):
        result = transform(image)
        assert torch.equal(result, image) or torch.equal(result, image.flip(-1))
        flipped += torch.equal(result, image.flip(-1))
    assert 150 < flipped < 250


def test_nothing_asked_for_changes_nothing() -> None:
    image = noise(8, 8)
    assert torch.equal(TrainTransform(8, Augmentation(crop="none", flip=False), half())(image), image)


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (31, 33)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_evaluation_resizes_the_shorter_side_as_asked_and_crops_the_middle(
    size: tuple[int, int], interpolation: str
) -> None:
    image = noise(*size)
    result = EvalTransform(32, half(32 / 36, interpolation))(image)
    shorter = 36
    long = int(shorter * max(size) / min(size))
    new = (shorter, long) if size[1] < size[0] else (long, shorter)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = picture.resize(new, Image.Resampling[interpolation.upper()])
    expected = v2.functional.center_crop(v2.functional.pil_to_tensor(resized), [32, 32])
    assert (result.int() - expected.int()).abs().max() <= 1  # PIL rounds in between


@pytest.mark.parametrize("crop_mode", get_args(CropMode))
@pytest.mark.parametrize("crop_pct", [0.9, 1.0])
@pytest.mark.parametrize("size", [(60, 100), (100, 61), (20, 25), (32, 32)])
def test_evaluation_is_timms(crop_mode: CropMode, crop_pct: float, size: tuple[int, int]) -> None:
    preprocessing = replace(half(crop_pct, "bilinear"), crop_mode=crop_mode, mean=(0.5, 0.4, 0.3))
    options = {"mean": preprocessing.mean, "std": preprocessing.std, "crop_pct": crop_pct, "crop_mode": crop_mode}
    timms = create_transform((3, 32, 32), interpolation="bilinear", normalize=False, **options)
    image = noise(*size)
    expected = timms(v2.functional.to_pil_image(image))
    result = EvalTransform(32, preprocessing)(image)
    assert result.shape == (3, 32, 32)
    assert (result.int() - expected.int()).abs().max() <= 1


def test_a_share_of_whole_numbers_gives_them_again() -> None:
    assert [half(224 / side).resized_side(224) for side in range(224, 400)] == list(range(224, 400))


@pytest.mark.parametrize("crop_mode", get_args(CropMode))
def test_training_keeps_of_an_image_what_evaluation_keeps(crop_mode: CropMode) -> None:
    preprocessing = replace(half(1.0, "lanczos"), crop_mode=crop_mode)
    image = noise(40, 80)
    expected = EvalTransform(32, preprocessing)(image)
    plain = TrainTransform(32, Augmentation(crop="none", flip=False), replace(preprocessing, crop_pct=0.5))
    assert torch.equal(plain(image), expected)
    padded = TrainTransform(32, Augmentation("pad"), preprocessing).prepare(image)
    assert crop_mode == "center" or torch.equal(padded[:, 4:-4, 4:-4], expected)


def test_random_crops_are_torchvisions_with_every_interpolation() -> None:
    image, scale = noise(40, 60), (0.2, 1.0)

    def resized(interpolation: str) -> TrainTransform:
        return TrainTransform(16, Augmentation("resized", scale, flip=False), half(1.0, interpolation))

    for interpolation, mode in (("bilinear", v2.InterpolationMode.BILINEAR), ("bicubic", v2.InterpolationMode.BICUBIC)):
        theirs = v2.RandomResizedCrop(16, scale=scale, interpolation=mode, antialias=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            expected = theirs(image)
            torch.manual_seed(1)
            assert torch.equal(resized(interpolation)(image), expected)
    made = set()
    for name in INTERPOLATIONS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made.add(
                tuple(
                    TrainTransform(16, Augmentation("resized", flip=False), half(1.0, name))(image).flatten().tolist()
                )
            )
    assert len(made) == len(INTERPOLATIONS)


def test_interpolations_differ() -> None:
    made = {tuple(EvalTransform(16, half(1.0, name))(noise(40, 40)).flatten().tolist()) for name in INTERPOLATIONS}
    assert len(made) == len(INTERPOLATIONS)


def test_evaluation_leaves_alone_what_fits() -> None:
    image = noise(32, 32)
    assert EvalTransform(32, half())(image) is image
    assert EvalTransform(32, half(0.9))(image) is not image


def test_normalize() -> None:
    pixels = noise(4, 4)[None]
    expected = (pixels.double() / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.25
    given = normalize(pixels, Preprocessing((0.1, 0.2, 0.3), (0.25, 0.25, 0.25)))
    torch.testing.assert_close(given, expected.float())


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"image_size \(0\) must be at least 1"):
        TrainTransform(0, Augmentation(), half())
    with pytest.raises(ValueError, match=r"image_size \(0\) must be at least 1"):
        EvalTransform(0, half())
    with pytest.raises(ValueError, match=r"crop_mode \('middle'\) must be one of 'center', 'squash', 'border'"):
        replace(half(), crop_mode="middle")  # type: ignore[arg-type]
