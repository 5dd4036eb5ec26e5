"""The batches of a run: which images each holds, the random state of each image, and the loader that gives them.

Order and randomness are functions of (seed, epoch, index) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from patchmerger.data.images import ImageSet, InMemory
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import EvalTransform, TrainTransform, Transform, normalize
from patchmerger.runs.environment import default_workers, start_method
from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu

Batch = tuple[Tensor, Tensor]
"""Images, uint8 (B, 3, S, S), and targets, int64 (B,) or float32 (B, C)."""

Key = tuple[int, int]
"""(epoch, index): an image, and the epoch that it is drawn in."""

_KEPT_BYTES = 2**30  # of images that are resized and padded already


@dataclass(eq=False)
class RunOrder(Sampler[list[Key]]):
    """The batches of a whole run, in order: a batch sampler.

    Each epoch is a permutation of its own; its last, incomplete batch is dropped. Several ranks share each
    batch, so two ranks with batches of b see together what one rank with batches of 2b sees.

    Args:
        size: The number of images n.
        batch_size: Images a batch and rank, b.
        epochs: How often all images are seen.
        seed: What the permutations depend on, together with the epoch.
        rank: Which share of each batch is this process's.
        world_size: How many processes share each batch.
        first: The batch to begin with, counted from 0 over the whole run.

    Raises:
        ValueError: If a number is out of range, or there are fewer images than in one batch of all ranks.
    """

    size: int
    batch_size: int
    epochs: int
    _: KW_ONLY
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    first: int = 0

    def __post_init__(self) -> None:
        size, batch_size, world_size = self.size, self.batch_size, self.world_size
        if batch_size < 1 or self.epochs < 1:
            raise ValueError(f"batch_size ({batch_size}) and epochs ({self.epochs}) must be at least 1")
        if not 0 <= self.rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 ({world_size - 1}), got {self.rank}")
        if size < batch_size * world_size:
            raise ValueError(
                f"{size} training images do not fill one batch of {batch_size * world_size} "
                f"({batch_size} on each of {world_size} devices): take a smaller batch_size"
            )
        self.steps_per_epoch = size // (batch_size * world_size)
        self.total = self.epochs * self.steps_per_epoch
        if not 0 <= self.first <= self.total:
            raise ValueError(f"first must be from 0 to {self.total}, the batches of the run, got {self.first}")

    def __len__(self) -> int:
        """The number of batches that are left, from ``first`` on."""
        return self.total - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, permutation = -1, torch.empty(0)
        for batch in range(self.first, self.total):
            if batch // self.steps_per_epoch != epoch:
                epoch = batch // self.steps_per_epoch
                generator = torch.Generator().manual_seed(key(self.seed, epoch))
                permutation = torch.randperm(self.size, generator=generator)
            start = (batch % self.steps_per_epoch * self.world_size + self.rank) * self.batch_size
            yield [(epoch, index) for index in permutation[start : start + self.batch_size].tolist()]


class EvaluationOrder(Sampler[list[int]]):
    """Every image once, in order; several ranks share each batch, the last, smaller one too.

    All ranks have as many batches, for ranks that share weights out run in step: a last batch with fewer images than
    ranks is joined to the one before it. Arguments are as for :class:`RunOrder`.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        starts = list(range(0, size, batch_size * world_size))
        if len(starts) > 1 and size - starts[-1] < world_size:
            del starts[-1]
        ends = [*starts[1:], size][: len(starts)]
        shares = [
            torch.arange(start, end).tensor_split(world_size)[rank] for start, end in zip(starts, ends, strict=True)
        ]
        self.batches: list[list[int]] = [share.tolist() for share in shares if len(share)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class TrainImages(Dataset[Batch]):
    """Training images, each varied under a random state of its own, that of (seed, epoch, index).

    The outer random state stays as it was. Where no other process reads them, and they are in memory, what is done to
    an image in each epoch alike, such as resizing, is done once.
    """

    def __init__(self, images: ImageSet, transform: Transform, *, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self._kept: dict[int, Tensor] = {}
        self._keeps = (
            isinstance(transform, TrainTransform)
            and isinstance(images.images, InMemory)
            and len(images) * transform.prepare(images[0]).numel() <= _KEPT_BYTES
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Key) -> Batch:
        """The image at (epoch, index), uint8 (3, S, S), and its target."""
        images, targets = self.__getitems__([item])
        return images[0], targets[0]

    def __getitems__(self, items: Sequence[Key]) -> Batch:
        """A whole batch: the random state is put by once, not once an image."""
        varied = []
        with random_state_kept():
            for epoch, index in items:
                seed_everything_on_cpu(key(self.seed, epoch, index))
                varied.append(self.varied(index))
        return torch.stack(varied), self.images.targets[[index for _, index in items]]

    def varied(self, index: int) -> Tensor:
        """Image ``index``, varied under the present random state."""
        if not (isinstance(self.transform, TrainTransform) and self._keeps) or get_worker_info() is not None:
            return self.transform(self.images[index])
        prepared = self._kept.get(index)
        if prepared is None:
            prepared = self._kept[index] = self.transform.prepare(self.images[index])
        return self.transform.vary(prepared)


class EvaluationImages(Dataset[Batch]):
    """Images of a validation or test set, fitted to one size."""

    def __init__(self, images: ImageSet, transform: EvalTransform) -> None:
        self.images = images
        self.transform = transform

    @property
    def as_they_are(self) -> bool:
        """Whether images are at hand and need no fitting, by the first of them: processes that load are no use then."""
        if not isinstance(self.images.images, InMemory):
            return False
        first = self.images[0]
        return self.transform(first) is first

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """Image ``index``, uint8 (3, S, S), and its target."""
        return self.transform(self.images[index]), self.images.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch."""
        fitted = [self.transform(self.images[index]) for index in indices]
        return torch.stack(fitted), self.images.targets[list(indices)]


@dataclass(eq=False)
class Loader:
    """Batches for Lightning, read by a DataLoader from a dataset that gives whole batches.

    Not a DataLoader itself: those Lightning takes apart to put in samplers of its own. That there is a ``state_dict``
    tells it that the loader can go on within an epoch; the place itself is kept by ``ImageData``, for workers read
    ahead and a loader cannot know how many batches were used.
    """

    dataset: Any
    order: RunOrder | EvaluationOrder | list[list[Key]]
    workers: int = 0
    pin_memory: bool = False

    def __len__(self) -> int:
        """The number of batches, those of an earlier, interrupted part of the run included."""
        return self.order.total if isinstance(self.order, RunOrder) else len(self.order)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.read(self.dataset, batch_sampler=self.order))

    def read(self, dataset: Dataset[Any], **batching: Any) -> DataLoader[Any]:
        """A DataLoader of whole batches."""
        return DataLoader(
            dataset,
            num_workers=self.workers,
            multiprocessing_context=start_method() if self.workers else None,
            collate_fn=as_it_is,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else each pass would draw from the global random state
            **batching,
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see above."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""


def normalized_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    image_size: int,
    *,
    batch_size: int = 128,
    workers: int | None = None,
    like: Tensor | None = None,
) -> Iterator[Tensor]:
    """All images in order, prepared as in evaluation and fitted to a size S: batches of floats (B, 3, S, S).

    Workers are by default as many as there are cores for, where anything is to be done. ``like`` has the device and
    dtype that batches are given; float32 on the CPU by default.
    """
    dataset = EvaluationImages(images, EvalTransform(image_size, preprocessing))
    if workers is None:
        workers = 0 if dataset.as_they_are else default_workers()
    like = torch.empty(0) if like is None else like
    for pixels, _ in Loader(dataset, EvaluationOrder(len(images), batch_size), workers=workers):
        yield normalize(pixels.to(like.device), preprocessing).to(like.dtype)


def as_it_is(batch: Any) -> Any:
    """Nothing is left to be collated: datasets give whole batches."""
    return batch
