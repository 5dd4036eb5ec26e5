"""Batches of streamed images: an order that is a function of the seed, gone on with by reading without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from patchmerger.data.batches import Batch, Loader, RunOrder
from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.streaming import ImageStream, Row
from patchmerger.data.transforms import Transform
from patchmerger.runs.random_state import key, random_state_kept, seed_everything_on_cpu

Skipped = None
"""In the place of a batch that was used before the run was interrupted: read, but not decoded."""


@dataclass(eq=False)
class StreamedBatches(IterableDataset[Batch | None]):
    """The batches of one process in one pass through its share; within a worker, the worker's.

    ``turn`` is (epoch, pass): what the order depends on, together with the seed. The first ``skip`` batches of this
    process need not be decoded.
    """

    stream: ImageStream
    transform: Transform
    order: RunOrder
    turn: tuple[int, int]
    skip: int

    def __iter__(self) -> Iterator[Batch | None]:
        worker = get_worker_info()
        mine, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = self.order
        rows = self.stream.read(key(order.seed, *self.turn) >> 1, rank=order.rank, world_size=order.world_size)
        number = 0
        while part := list(islice(rows, order.batch_size)):
            # Workers give their batches in turns: number i of this one comes no later than here among all.
            place = number * workers + mine
            if len(part) == order.batch_size and place < self.skip:
                yield Skipped
            else:
                yield self._batch(part, (order.rank, mine, number))
            number += 1

    def _batch(self, part: list[Row], place: tuple[int, int, int]) -> Batch:
        """Decode and vary images, each under a random state of its own."""
        images: list[Tensor | None] = []
        with random_state_kept():
            for row, (picture, _) in enumerate(part):
                seed_everything_on_cpu(key(self.order.seed, *self.turn, *place, row))
                try:
                    images.append(self.transform(decode(picture, max_pixels=self.stream.data.max_pixels)))
                except BadImageError as error:
                    if self.stream.data.bad_files == "error":
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


class StreamLoader(Loader):
    """The batches of a whole run, from ``order.first`` on, for Lightning.

    Each epoch goes through the images anew, in an order of its own. What workers have left at the end of an epoch is
    put together to whole batches; fewer images than a batch are left out. A process whose share is used up before
    the epoch ends, because ``samples`` is more than there are, begins it again.
    """

    def __init__(
        self,
        stream: ImageStream,
        transform: Transform,
        order: RunOrder,
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(stream, order, workers=workers, pin_memory=pin_memory)
        self.run = order
        self.transform = transform

    def __iter__(self) -> Iterator[Batch]:
        steps = self.run.steps_per_epoch
        for epoch in range(self.run.first // steps, self.run.total // steps):
            first = max(0, self.run.first - epoch * steps)
            yield from islice(self._epoch(epoch, first), steps - first)

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
                    f"the share of one process holds fewer than one batch of {self.run.batch_size} images: take a "
                    "smaller training.batch_size, or fewer devices"
                )
            turn += 1

    def _pass(self, turn: tuple[int, int], skip: int) -> Iterator[Batch | None]:
        """Whole batches of one pass; incomplete ones of several workers are put together."""
        size = self.run.batch_size
        rest: list[Batch] = []
        batches = StreamedBatches(self.dataset, self.transform, self.run, turn=turn, skip=skip)
        for batch in self.read(batches, batch_size=None):
            if batch is Skipped or len(batch[0]) == size:
                yield batch
                continue
            rest.append(batch)
            if sum(len(images) for images, _ in rest) >= size:
                images, targets = (torch.cat(part) for part in zip(*rest, strict=True))
                yield images[:size], targets[:size]
                rest = [(images[size:], targets[size:])]
