"""Checkpoints that survive a crash and are read only by the run that wrote them."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from patchmerger.runs.files import atomic_file
from patchmerger.runs.run_folder import RunFolder

CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"
_RUN = "patchmerger_run"


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

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps; not where a validation follows, which would be left out on resuming."""
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches == 0 and done % self.every == 0 and not _validates(trainer, done):
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_RUN] = self.run


def last_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint to resume a run from; ``None`` where there is none.

    Raises:
        ValueError: It is damaged, or was written by another run.
    """
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


def _validates(trainer: Trainer, batches_done: int) -> bool:
    interval = trainer.val_check_interval
    return isinstance(interval, int) and bool(trainer.num_val_batches) and batches_done % interval == 0
