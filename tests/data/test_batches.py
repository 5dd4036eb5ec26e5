from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchmerger.data import Augmentation, RunOrder
from patchmerger.data.batches import EvaluationOrder, TrainImages
from patchmerger.data.images import ImageSet, InMemory
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import TrainTransform
from patchmerger.runs.random_state import key, seed_everything_on_cpu

runs = st.fixed_dictionaries(
    {
        "size": st.integers(12, 60),
        "batch_size": st.integers(1, 4),
        "epochs": st.integers(1, 4),
        "seed": st.integers(0, 2**40),
        "world_size": st.integers(1, 3),
    }
)


@settings(deadline=None, max_examples=50)
@given(run=runs)
def test_an_epoch_sees_each_image_at_most_once_and_drops_less_than_a_batch(run: dict[str, int]) -> None:
    ranks = [RunOrder(**run, rank=rank) for rank in range(run["world_size"])]
    seen = Counter(item for order in ranks for batch in order for item in batch)
    assert set(seen.values()) == {1}
    for epoch in range(run["epochs"]):
        images = [index for at, index in seen if at == epoch]
        assert run["size"] - len(images) < run["batch_size"] * run["world_size"]
        assert all(0 <= index < run["size"] for index in images)


@settings(deadline=None, max_examples=50)
@given(run=runs, data=st.data())
def test_going_on_gives_what_is_left(run: dict[str, int], data: st.DataObject) -> None:
    whole = RunOrder(**run)
    batches = list(whole)
    assert len(batches) == len(whole) == whole.total == run["epochs"] * whole.steps_per_epoch
    first = data.draw(st.integers(0, whole.total))
    rest = RunOrder(**run, first=first)
    assert list(rest) == batches[first:]
    assert (len(rest), rest.total) == (whole.total - first, whole.total)


@settings(deadline=None, max_examples=50)
@given(run=runs)
def test_ranks_share_the_batches_of_a_single_one(run: dict[str, int]) -> None:
    alone = RunOrder(**{**run, "batch_size": run["batch_size"] * run["world_size"], "world_size": 1})
    ranks = [RunOrder(**run, rank=rank) for rank in range(run["world_size"])]
    together = [[item for part in parts for item in part] for parts in zip(*ranks, strict=True)]
    assert together == list(alone)


def test_epochs_and_seeds_differ() -> None:
    order = list(RunOrder(50, 50, 2, seed=1))
    assert [i for _, i in order[0]] != [i for _, i in order[1]]
    assert order[0] != next(iter(RunOrder(50, 50, 1, seed=2)))


def test_the_order_never_changes() -> None:
    assert next(iter(RunOrder(10, 5, 1, seed=0))) == [(0, 0), (0, 7), (0, 2), (0, 6), (0, 3)]


@settings(deadline=None, max_examples=50)
@given(size=st.integers(0, 50), batch_size=st.integers(1, 7), world_size=st.integers(1, 4))
def test_evaluation_sees_every_image_once(size: int, batch_size: int, world_size: int) -> None:
    ranks = [EvaluationOrder(size, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for order in ranks for batch in order for index in batch) == list(range(size))
    assert all(0 < len(batch) <= batch_size + (world_size > 1) for order in ranks for batch in order)
    assert size < world_size or len({len(order) for order in ranks}) == 1  # else those that share weights would wait
    assert [index for batch in EvaluationOrder(size, batch_size) for index in batch] == list(range(size))


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_what_is_resized_once_gives_the_same_images_in_every_epoch(crop: str) -> None:
    transform = TrainTransform(16, Augmentation(crop), Preprocessing((0.5,) * 3, (0.5,) * 3, 1.0))  # type: ignore[arg-type]
    pixels = [torch.randint(0, 256, (3, 8, 8 + i), dtype=torch.uint8) for i in range(4)]
    images = TrainImages(ImageSet(InMemory(pixels), torch.arange(4)), transform, seed=3)
    for epoch in (0, 1, 1):
        for index, (image, _) in enumerate(map(images.__getitem__, [(epoch, i) for i in range(4)])):
            seed_everything_on_cpu(key(3, epoch, index))
            assert torch.equal(image, transform(pixels[index]))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="7 training images do not fill one batch of 8"):
        RunOrder(7, 4, 1, world_size=2)
    with pytest.raises(ValueError, match=r"batch_size \(0\) and epochs \(1\) must be at least 1"):
        RunOrder(7, 0, 1)
    with pytest.raises(ValueError, match=r"rank must be from 0 to world_size - 1 \(1\), got 2"):
        RunOrder(7, 1, 1, rank=2, world_size=2)
    with pytest.raises(ValueError, match="first must be from 0 to 7, the batches of the run, got 8"):
        RunOrder(7, 1, 1, first=8)
