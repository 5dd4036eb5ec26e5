"""Checkpoints that survive a crash and are read only by the run that wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from patchmerger.runs.files import atomic_file

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint and then takes its place; reads with ``weights_only=True``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` so that a crash at any moment leaves the last good one."""
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:  # Lightning's own is not flushed to disk
            torch.save(checkpoint, partial)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without running any code in it."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)  # type: ignore[no-any-return]


class KeepLast(Callback):
    """Keeps one checkpoint, of the last good step.

    Args:
        folder: Where ``last.ckpt`` is written.
        every: Steps (batches) between two checkpoints.
        run: The fingerprint of the run, which a checkpoint bears.
    """

    def __init__(self, folder: Path, *, every: int, run: str) -> None:
        if every < 1:
            raise ValueError(f"checkpoint_every ({every}) must be at least 1 step")
        self.path = folder / LAST
        self.every = every
        self.run = run

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps; not where a validation follows, which would be left out on resuming."""
        done = batch_idx + 1
        if done % trainer.accumulate_grad_batches == 0 and done % self.every == 0 and not _validates(trainer, done):
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint."""
        checkpoint["patchmerger_run"] = self.run

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run."""
        if checkpoint.get("patchmerger_run") != self.run:
            raise ValueError(f"{self.path} was not written by this run: move it away to start from the beginning")


def _validates(trainer: Trainer, batches_done: int) -> bool:
    interval = trainer.val_check_interval
    return isinstance(interval, int) and bool(trainer.num_val_batches) and batches_done % interval == 0
