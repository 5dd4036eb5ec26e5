"""From an order of images to batches: the datasets that a DataLoader reads, and the loader that Lightning gets."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from patchmerger.data.images import ImageSet
from patchmerger.data.order import Key, key, random_state_kept, seed_everything_on_cpu
from patchmerger.data.transforms import EvalTransform, Transform

Batch = tuple[Tensor, Tensor]
"""Images, uint8 (B, 3, S, S), and targets, int64 (B,) or float32 (B, C)."""


class TrainImages(Dataset[Batch]):
    """Training images, each varied under a random state of its own; the outer random state stays as it was.

    Args:
        images: The training set.
        transform: Varies one image.
        seed: Together with the epoch and the index, what an image's random state depends on.
    """

    def __init__(self, images: ImageSet, transform: Transform, *, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

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
                varied.append(self.transform(self.images[index]))
        return torch.stack(varied), self.images.targets[[index for _, index in items]]


class EvaluationImages(Dataset[Batch]):
    """Images fitted to one size.

    Args:
        images: A validation or test set.
        transform: Fits one image.
    """

    def __init__(self, images: ImageSet, transform: EvalTransform) -> None:
        self.images = images
        self.transform = transform
        self.as_they_are = transform.keeps(images.size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """Image ``index``, uint8 (3, S, S), and its target."""
        return self.transform(self.images[index]), self.images.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, in one indexing where nothing is to be done to the images."""
        targets = self.images.targets[list(indices)]
        if self.as_they_are:
            return self.images.gather(indices), targets
        return torch.stack([self.transform(self.images[index]) for index in indices]), targets


class Loader:
    """Batches for Lightning, read by a DataLoader.

    Not a DataLoader itself: those Lightning takes apart to put in samplers of its own. That there is a ``state_dict``
    tells it that the loader can go on within an epoch; the place itself is kept by ``ImageData``, for workers
    read ahead and a loader cannot know how many batches were used.

    Args:
        dataset: Gives whole batches.
        order: The indices of each batch.
        length: The number of batches to state, those of an earlier, interrupted part of the run included.
        workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether batches are put where a GPU fetches them fastest.
    """

    def __init__(
        self,
        dataset: TrainImages | EvaluationImages,
        order: Sampler[Any],
        *,
        length: int,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.length = length
        self.order = order
        self.loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each pass would draw from the global random state
        )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: see above."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""


def as_it_is(batch: Any) -> Any:
    """Nothing is left to be collated: datasets give whole batches."""
    return batch
