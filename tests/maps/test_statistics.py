"""Statistics of merge maps over batches, against plain loops over images."""

import math

import pytest
import torch

from conftest import make_images, make_vit
from maps.constructed import picking
from patchmerger import insert
from patchmerger.maps import map_statistics, merge_maps
from patchmerger.maps.measures import UNUSED_BELOW

pytestmark = pytest.mark.usefixtures("one_thread")


def test_against_plain_loops():
    model = insert(make_vit(), 3, init=5 * torch.randn(3, 32, generator=torch.Generator().manual_seed(3)))
    images = make_images(5)
    [found] = map_statistics(model, [images[:2], images[2:]])
    maps = merge_maps(model, images).double().flatten(2)  # (5, 3, 16)
    mean = maps.mean(dim=0)
    assert (found.name, found.after, found.images) == ("blocks.1.merger", 2, 5)
    torch.testing.assert_close(found.mean_maps.flatten(1), mean.float())
    unused, cosines, led = [], [], [0, 0, 0]
    for image in maps:
        together = image.sum(dim=0) * 16 / 3
        unused += (together < UNUSED_BELOW).double().tolist()
        for patch in range(16):
            if together[patch] >= UNUSED_BELOW:
                led[int(image[:, patch].argmax())] += 1
        cosines += [
            float(image[i] @ image[j] / image[i].norm() / image[j].norm()) for i in range(3) for j in range(3) if i != j
        ]
    assert found.unused == pytest.approx(sum(unused) / len(unused), abs=1e-6)
    assert found.similarity == pytest.approx(sum(cosines) / len(cosines))
    assert found.shares.tolist() == pytest.approx([count / (5 * 16) for count in led], abs=1e-6)
    for token in range(3):
        steady = [float(image[token] @ mean[token] / image[token].norm() / mean[token].norm()) for image in maps]
        assert float(found.steadiness[token]) == pytest.approx(sum(steady) / 5)
        entropies = [-sum(p * math.log(p) for p in image[token].tolist() if p > 0) for image in maps]
        assert float(found.effective_patches[token]) == pytest.approx(sum(map(math.exp, entropies)) / 5)


def test_queries_that_pick_their_patches_are_steady():
    model = picking([[(0, 0)], [(0, 3), (1, 2)], [(3, 3)]])
    [found] = map_statistics(model, [make_images(3)])
    assert found.steadiness.tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert found.effective_patches.tolist() == pytest.approx([1, 2, 1], abs=1e-2)
    assert found.effective_rank == pytest.approx(2.95, abs=0.05)
    assert found.unused == pytest.approx(12 / 16)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        map_statistics(insert(make_vit(), 4), [])


class OnMps(torch.Tensor):
    """Like a tensor on Apple's GPU, which has no float64, in that alone."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function is torch.Tensor.double:
            raise TypeError("the MPS framework doesn't support float64")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_statistics_are_taken_on_a_device_without_float64():
    model = insert(make_vit(), 4)
    images = make_images()
    found = map_statistics(model, [images.as_subclass(OnMps)])
    assert isinstance(model.patch_embed(images.as_subclass(OnMps)), OnMps)
    for mine, expected in zip(found, map_statistics(model, [images]), strict=True):
        assert torch.equal(mine.mean_maps, expected.mean_maps)
        assert type(mine.mean_maps) is torch.Tensor
