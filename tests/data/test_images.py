import pytest
import torch

from patchmerger.data.images import ImageSet, InMemory


def ramp(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.full((3, height, width), number, dtype=torch.uint8) for number, (height, width) in enumerate(sizes)]


def test_images_of_any_size_come_back_as_they_were() -> None:
    images = ramp((2, 3), (5, 1), (4, 4))
    kept = ImageSet(InMemory(images), torch.tensor([0, 1, 0]))
    assert len(kept) == 3
    for number, image in enumerate(images):
        assert torch.equal(kept[number], image)
    with pytest.raises(RuntimeError, match="to be equal size"):
        kept.gather([0, 1])


def test_subsets_share_pixels_and_keep_targets() -> None:
    whole = ImageSet(InMemory(ramp(*[(2, 2)] * 5)), torch.arange(5))
    part = whole.subset([4, 1, 2]).subset([2, 0])
    assert part.targets.tolist() == [2, 4]
    assert part[1].data_ptr() == whole[4].data_ptr()
    assert part.gather([1, 0, 1])[:, 0, 0, 0].tolist() == [4, 2, 4]


def test_as_many_targets_as_images() -> None:
    with pytest.raises(ValueError, match="there are 2 images but 3 targets"):
        ImageSet(InMemory(ramp((1, 1), (1, 1))), torch.arange(3))
