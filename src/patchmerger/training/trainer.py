"""The Lightning trainer of a run: what it measures and shows, how it resumes, what it predicts for the test images."""

from __future__ import annotations

import time
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn

from patchmerger.data.module import ImageData
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import atomic_file, full_disk_named
from patchmerger.runs.run_folder import RunFolder
from patchmerger.training.attention import short_attention
from patchmerger.training.devices import on_devices, quiet
from patchmerger.training.settings import LoggerName, Precision, TrainingSettings
from patchmerger.training.task import TrainingTask, gather

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
_RUN = "patchmerger_run"


@quiet()
def make_trainer(training: TrainingSettings, folder: RunFolder, stopwatch: Stopwatch, *, progress: bool) -> pl.Trainer:
    """A Lightning trainer for one run: the whole run is one Lightning epoch, which it can resume anywhere in."""
    keep = KeepLast(folder, every=training.checkpoint_every)
    return on_devices(
        training,
        max_epochs=1,
        accumulate_grad_batches=training.accumulate,
        val_check_interval=1,  # set to the batches of an epoch once the number of devices is known
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[stopwatch, keep, *([ProgressBar()] if progress else [])],
        plugins=[AtomicCheckpointIO()],
        logger=_logger(training.logger, folder),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )


def check_logger(name: LoggerName) -> None:
    """Raise ``ValueError`` where the library of a logger is not installed."""
    if name in ("wandb", "tensorboard") and find_spec(name) is None:
        raise ValueError(f"training.logger ({name!r}) needs a library that is not installed: pip install {name}")


def check_weights(model: nn.Module, precision: Precision, argument: str) -> None:
    """Raise ``ValueError`` where weights are too coarse to be trained: in bf16 a small step changes nothing."""
    dtype = coarse_dtype(model)
    if dtype is not None and precision in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(
            f"{argument} ({host_class(model).__name__}) has weights in {str(dtype).removeprefix('torch.')}, in which "
            f"small steps are lost: give {argument}.float(); precision='bf16-mixed' computes in bf16, with weights in "
            "float32"
        )


def coarse_dtype(model: nn.Module) -> torch.dtype | None:
    """The first dtype of a weight that is coarser than float32; ``None`` where there is none."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next((dtype for dtype in dtypes if dtype.itemsize < 4), None)


def _logger(name: LoggerName, folder: RunFolder) -> Logger | bool:
    """Where the training curve goes, in the folder of the run; W&B resumes the run of the same settings."""
    logs = folder.path / "logs"
    if name == "csv":
        return CSVLogger(logs, name="csv")
    if name == "tensorboard":
        return TensorBoardLogger(logs, name="tensorboard")
    if name == "wandb":
        return WandbLogger(
            name=folder.path.name, save_dir=logs, id=folder.fingerprint[:16], project="patchmerger", resume="allow",
            config=folder.settings,
        )  # fmt: skip
    return False


@quiet()
def train(trainer: pl.Trainer, task: TrainingTask, data: pl.LightningDataModule, folder: RunFolder) -> None:
    """Train from the last checkpoint on, or from the beginning where there is none.

    Raises:
        ValueError: The checkpoint is damaged, or of another run.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last good step is there.
    """
    checkpoint = last_checkpoint(folder)
    attention = nullcontext() if task.settings.compile else short_attention()
    try:
        with full_disk_named(folder.path), attention:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from None


@quiet()
def predict(trainer: pl.Trainer, task: TrainingTask, loader: ImageData) -> tuple[Tensor, Tensor]:
    """Scores (n, C) and targets of all test images, in order, on every process."""
    batches = loader.test_dataloader()
    parts: Any = trainer.predict(task, dataloaders=batches, ckpt_path=None)
    rows = [row for batch in batches.order for row in batch]
    own_scores, own_targets = (torch.cat(part) for part in zip(*parts, strict=True))
    shares = gather((torch.tensor(rows), own_scores, own_targets))
    all_rows, scores, targets = (torch.cat(part) for part in zip(*shares, strict=True))
    in_order = all_rows.argsort()
    return scores[in_order], targets[in_order]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place; reads with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` so that a crash at any moment leaves the last good one."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        path = Path(path)
        with atomic_file(path) as partial:  # Lightning's own is not flushed to disk
            try:
                torch.save(checkpoint, partial)
            except RuntimeError as error:  # what torch makes of a write that fails, for whatever reason
                raise OSError(f"{path} cannot be written: {str(error).splitlines()[0]}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running any code in it."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)  # type: ignore[no-any-return]


class KeepLast(Callback):
    """Keeps one checkpoint, of the last good step: after every so many batches, signed with the run's fingerprint."""

    def __init__(self, folder: RunFolder, *, every: int) -> None:
        self.path = folder.path / CHECKPOINTS / LAST
        self.every = every
        self.run = folder.fingerprint
        self._done = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps and after an epoch; not where a validation follows, lest resuming leaves it out."""
        done, interval = batch_idx + 1, trainer.val_check_interval
        self._done = done
        ends = isinstance(interval, int) and done % interval == 0
        if (ends or done % self.every == 0) and not (ends and trainer.enable_validation):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save, unless gradients are being accumulated, which no checkpoint has."""
        if self._done % trainer.accumulate_grad_batches == 0 or self._done == trainer.num_training_batches:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_RUN] = self.run


def last_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint to resume a run from; ``ValueError`` where it is damaged or was written by another run."""
    path = folder.path / CHECKPOINTS / LAST
    if not path.exists():
        return None
    cure = "remove it to start from the beginning"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(f"{path} is damaged, or no checkpoint: {cure}") from error
    if not isinstance(checkpoint, dict) or checkpoint.get(_RUN) != folder.fingerprint:
        raise ValueError(f"{path} was not written by this run: {cure}")
    return path


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
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self.images += len(batch[0]) * trainer.world_size
        self._since = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the evaluation out."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
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
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The epoch in place of Lightning's version number."""
        metrics = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        if isinstance(trainer.val_check_interval, int):  # the batches of an epoch
            metrics["epoch"] = f"{(trainer.fit_loop.total_batch_idx + 1) / trainer.val_check_interval:.1f}"
        return metrics
