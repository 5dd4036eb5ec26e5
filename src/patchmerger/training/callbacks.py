"""What a run measures, shows and leaves unsaid while it trains."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar


class Stopwatch(Callback):
    """Seconds and images of the training steps, loading included, evaluation not; kept over interruptions."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._since = 0.0

    @property
    def images_per_second(self) -> float:
        """Training throughput."""
        return self.images / self.seconds if self.seconds else float("nan")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a step."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self.images += len(batch[0]) * trainer.world_size
        self._since = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the evaluation out."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]


class ProgressBar(TQDMProgressBar):
    """One bar for the whole run; none for the evaluations within it."""

    def init_validation_tqdm(self) -> Any:
        """A bar that is not shown."""
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar

    init_predict_tqdm = init_validation_tqdm

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Name the bar."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The epoch in place of Lightning's version number."""
        metrics = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        if isinstance(trainer.val_check_interval, int):  # the batches of an epoch
            metrics["epoch"] = f"{(trainer.fit_loop.total_batch_idx + 1) / trainer.val_check_interval:.1f}"
        return metrics


_NO_NEWS = (
    ".*does not have many workers.*",  # few cores, or images in memory
    ".*in eval mode at the start of training.*",  # the moving average of the weights
    ".*GPU available but not used.*",
    ".*recommended to use .self.log.'val_metric'.*",  # every process has the metric of all
    ".*isinstance.treespec, LeafSpec.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, Lightning leaves out what it says at every start and what is meant to be so."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _NO_NEWS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)
