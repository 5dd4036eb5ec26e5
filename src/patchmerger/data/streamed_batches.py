"""Batches of streamed images: an order that is a function of the seed, gone on with by reading without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from patchmerger.data.batches import Batch, as_it_is, key, random_state_kept, seed_everything_on_cpu
from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.streaming import ImageStream, Row
from patchmerger.data.transforms import Transform

Skipped = None
"""In the place of a batch that was used before the run was interrupted: read, but not decoded."""


class StreamedBatches(IterableDataset[Batch | None]):
    """The batches of one process in one pass through its share; within a worker, the worker's.

    Args:
        stream: The images.
        transform: Varies one image.
        seed: Of the run.
        turn: (epoch, pass): what the order depends on, together with the seed.
        batch_size: Images in a batch.
        rank: Of this process.
        world_size: How many processes share the images.
        skip: Batches of this process that need not be decoded.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        *,
        seed: int,
        turn: tuple[int, int],
        batch_size: int,
        rank: int,
        world_size: int,
        skip: int,
    ) -> None:
        self.stream = stream
        self.transform = transform
        self.seed = seed
        self.turn = turn
        self.batch_size = batch_size
        self.rank, self.world_size = rank, world_size
        self.skip = skip

    def __iter__(self) -> Iterator[Batch | None]:
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        rows = self.stream.read(key(self.seed, *self.turn) >> 1, rank=self.rank, world_size=self.world_size)
        number = 0
        while part := list(islice(rows, self.batch_size)):
            # Workers give their batches in turns: number i of this one comes no later than here among all.
            place = number * workers + mine
            if len(part) == self.batch_size and place < self.skip:
                yield Skipped
            else:
                yield self._batch(part, (self.rank, mine, number))
            number += 1

    def _batch(self, part: list[Row], place: tuple[int, int, int]) -> Batch:
        """Decode and vary images, each under a random state of its own."""
        images: list[Tensor | None] = []
        with random_state_kept():
            for row, (picture, _) in enumerate(part):
                seed_everything_on_cpu(key(self.seed, *self.turn, *place, row))
                try:
                    images.append(self.transform(decode(picture, max_pixels=self.stream.max_pixels)))
                except BadImageError as error:
                    if not self.stream.skip_bad:
                        raise BadImageError(
                            f"a streamed image with the label {part[row][1]!r} cannot be decoded ({error}): repair it, "
                            "or set data.bad_files to skip"
                        ) from error
                    images.append(None)
        good = [row for row, image in enumerate(images) if image is not None]
        if not good:
            raise BadImageError("all streamed images of one batch cannot be decoded: are they images?")
        # In the place of a bad image another one of its batch: the number of images fixes the order.
        rows = [row if images[row] is not None else good[row % len(good)] for row in range(len(part))]
        pixels = torch.stack([images[row] for row in rows])  # type: ignore[misc]
        return pixels, self.stream.targets_of([part[row][1] for row in rows])


class StreamLoader:
    """The batches of a whole run, from ``first`` on, for Lightning.

    Each epoch goes through the images anew, in an order of its own. What workers have left at the end of an epoch is
    put together to whole batches; fewer images than a batch are left out. A process whose share is used up before
    the epoch ends, because ``samples`` is more than there are, begins it again.

    Args:
        stream: The images.
        transform: Varies one image.
        seed: Of the run.
        batch_size: Images in a batch of this process.
        steps_per_epoch: Batches in an epoch.
        epochs: Epochs of the run.
        first: The batch to begin with, counted from 0 over the whole run.
        rank: Of this process.
        world_size: How many processes share the images.
        workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether batches are put where a GPU fetches them fastest.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
        steps_per_epoch: int,
        epochs: int,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.first = first
        self.shared: dict[str, Any] = {
            "transform": transform, "seed": seed, "batch_size": batch_size, "rank": rank, "world_size": world_size
        }  # fmt: skip
        self.workers = workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        """Batches of the run, those before ``first`` included."""
        return self.steps_per_epoch * self.epochs

    def __iter__(self) -> Iterator[Batch]:
        for epoch in range(self.first // self.steps_per_epoch, self.epochs):
            first = max(0, self.first - epoch * self.steps_per_epoch)
            yield from islice(self._epoch(epoch, first), self.steps_per_epoch - first)

    def _epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of an epoch from ``first`` on, without end."""
        given, turn = 0, 0
        while True:
            before = given
            for batch in self._pass((epoch, turn), first - given):
                given += 1
                if batch is not Skipped and given > first:
                    yield batch
            if given == before:
                raise ValueError(
                    f"the share of one process holds fewer than one batch of {self.batch_size} images: take a smaller "
                    "training.batch_size, or fewer devices"
                )
            turn += 1

    def _pass(self, turn: tuple[int, int], skip: int) -> Iterator[Batch | None]:
        """Whole batches of one pass; incomplete ones of several workers are put together."""
        dataset = StreamedBatches(self.stream, turn=turn, skip=skip, **self.shared)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else each pass would draw from the global random state
        )
        rest: list[Batch] = []
        for batch in loader:
            if batch is Skipped or len(batch[0]) == self.batch_size:
                yield batch
                continue
            rest.append(batch)
            if sum(len(images) for images, _ in rest) >= self.batch_size:
                images, targets = (torch.cat(part) for part in zip(*rest, strict=True))
                yield images[: self.batch_size], targets[: self.batch_size]
                rest = [(images[self.batch_size :], targets[self.batch_size :])]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: ``ImageData`` keeps the place."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""
