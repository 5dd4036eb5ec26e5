"""The Lightning data module: one run is one sequence of batches, which goes on where it was interrupted."""

from abc import ABC, abstractmethod
from typing import Any, cast

import lightning
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.trainer.states import TrainerFn

from patchmerger.data.batches import EvaluationImages, EvaluationOrder, Loader, RunOrder, TrainImages
from patchmerger.data.images import ImageSet
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import Augmentation
from patchmerger.data.splits import SWAPPED, ImageSplits
from patchmerger.data.streamed_batches import StreamLoader
from patchmerger.data.streaming import ImageStream
from patchmerger.data.transforms import EvalTransform, Transform, training_transform
from patchmerger.runs.environment import default_workers


class ResumedData(lightning.LightningDataModule, ABC):
    """Batches of a run whose epochs together are one epoch of Lightning, which goes on after the batches that are done.

    Attributes:
        validation: What is watched while training, or None.
        first_batch: The batch of the run that ``train_dataloader`` begins with; above 0 after resuming.
    """

    validation: Any
    first_batch = 0

    @abstractmethod
    def _order(self, first: int = 0) -> RunOrder:
        """The order of the run from batch ``first`` on."""

    def _identity(self) -> dict[str, int]:
        """What makes the order of the run, where a checkpoint of another run could be met."""
        return {}

    def _content(self) -> str | None:
        """What images there are, where they could be others than those of a checkpoint."""
        return None

    @property
    def steps_per_epoch(self) -> int:
        """Batches that each device sees in an epoch."""
        return self._order().steps_per_epoch

    def setup(self, stage: str) -> None:
        """Where there is no validation set, turns validation off: Lightning would warn of an empty one."""
        if stage == TrainerFn.FITTING and self.validation is None and self.trainer is not None:
            self.trainer.limit_val_batches = 0

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that are done, what makes the order of the run, and a hash of the images."""
        done = self.first_batch
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            # `processed` counts the batch whose end a checkpoint is written at; `completed` does not yet
            done = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_loop.batch_progress.current).processed
        return {"batches": done, "content": self._content(), **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on after the batches that are done.

        Raises:
            ValueError: If the run that wrote this had another order, or other images.
        """
        identity = {name: value for name, value in state_dict.items() if name not in ("batches", "content")}
        if identity != self._identity():
            raise ValueError(f"the checkpoint is of a run with {identity}, this one has {self._identity()}")
        if state_dict.get("content") not in (None, self._content()):
            raise ValueError(SWAPPED)
        self.first_batch = state_dict["batches"]


class ImageData(ResumedData):
    """Batches of a run for Lightning: images uint8 (B, 3, S, S), targets int64 (B,) or float32 (B, C).

    All epochs together are one Lightning epoch (``Trainer(max_epochs=1)``), because Lightning replays the beginning of
    an epoch that was interrupted. For a validation run after each epoch set ``check_val_every_n_epoch=None`` and
    ``val_check_interval=data.steps_per_epoch`` (batches, whatever the accumulation). With several devices that number
    is known once ``data.trainer`` is set; ``trainer.val_check_interval`` may be set after it.

    Args:
        splits: Training, validation and test images.
        image_size: Height and width S of the batches.
        preprocessing: How images are resized, and cropped in evaluation.
        batch_size: Images a batch and device.
        epochs: How often all training images are seen.
        seed: Order and augmentation depend on it, on the epoch and on the image, and on nothing else.
        augmentation: How training images are varied, or a function of one image that does so.
        workers: Processes that load images; by default 0 where at most two cores are at hand for each device,
            else one less than there are cores for each device, at most 8.

    Raises:
        ValueError: If there are fewer training images than in one batch, or a number is out of range.
    """

    def __init__(
        self,
        splits: ImageSplits,
        *,
        image_size: int,
        preprocessing: Preprocessing,
        batch_size: int,
        epochs: int,
        seed: int = 0,
        augmentation: Augmentation | Transform = Augmentation(),
        workers: int | None = None,
    ) -> None:
        super().__init__()
        if workers is not None and workers < 0:
            raise ValueError(f"workers ({workers}) must be 0 or more")
        self.splits = splits
        self.image_size = image_size
        self.batch_size = batch_size
        self.epochs = epochs
        self.seed = seed
        self.workers = workers
        self.validation = splits.validation
        self.train_transform = training_transform(image_size, augmentation, preprocessing)
        self.eval_transform = EvalTransform(image_size, preprocessing)
        self._order()  # says now that there are too few images

    def train_dataloader(self) -> Loader:
        """The batches of the run from ``first_batch`` on; its length counts those before, too.

        Raises:
            ValueError: If the trainer would go through the run more than once.
        """
        if self.trainer is not None and self.trainer.max_epochs != 1:
            raise ValueError(
                f"ImageData gives all {self.epochs} epochs as one: the trainer needs max_epochs=1, "
                f"not {self.trainer.max_epochs}"
            )
        order = self._order(self.first_batch)
        stream, pin_memory = self.splits.train, self._pin_memory()
        if isinstance(stream, ImageStream):
            workers = self._stream_workers(stream)
            return StreamLoader(stream, self.train_transform, order, workers=workers, pin_memory=pin_memory)
        images = TrainImages(stream, self.train_transform, seed=self.seed)
        return Loader(images, order, workers=self._workers(), pin_memory=pin_memory)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Every validation image once, in order; nothing where there is no validation set."""
        return [] if self.validation is None else self._evaluation(self.validation)

    def test_dataloader(self) -> Loader:
        """Every test image once, in order."""
        return self._evaluation(self.splits.test)

    def _identity(self) -> dict[str, int]:
        world_size = self._place()["world_size"]
        identity = {"images": len(self.splits.train), "global_batch": self.batch_size * world_size, "seed": self.seed}
        if isinstance(self.splits.train, ImageStream):  # who reads which files decides on the order
            identity |= {"devices": world_size, "data.workers": self._stream_workers(self.splits.train)}
        return identity

    def _content(self) -> str | None:
        return self.splits.content

    def _order(self, first: int = 0) -> RunOrder:
        size = len(self.splits.train)
        return RunOrder(size, self.batch_size, self.epochs, seed=self.seed, first=first, **self._place())

    def _evaluation(self, images: ImageSet) -> Loader:
        order = EvaluationOrder(len(images), self.batch_size, **self._place())
        dataset = EvaluationImages(images, self.eval_transform)
        workers = 0 if dataset.as_they_are else self._workers()
        return Loader(dataset, order, workers=workers, pin_memory=self._pin_memory())

    def _place(self) -> dict[str, int]:
        """Which of the processes this is."""
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return default_workers(1 if self.trainer is None else self.trainer.num_devices)

    def _stream_workers(self, stream: ImageStream) -> int:
        """Each worker reads files of its own."""
        return min(self._workers(), stream.shards(self._place()["world_size"]))

    def _pin_memory(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
