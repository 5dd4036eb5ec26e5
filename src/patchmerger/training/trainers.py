"""The Lightning trainer of a run, and what it predicts for the test images."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor

from patchmerger.data import ImageData
from patchmerger.runs.run_folder import RunFolder
from patchmerger.training.callbacks import ProgressBar, Stopwatch
from patchmerger.training.checkpoints import AtomicCheckpointIO, KeepLast
from patchmerger.training.settings import TrainingSettings
from patchmerger.training.sharding import ShardedStrategy
from patchmerger.training.task import TrainingTask, gather


def make_trainer(training: TrainingSettings, folder: RunFolder, stopwatch: Stopwatch, *, progress: bool) -> pl.Trainer:
    """A Lightning trainer for one run: the whole run is one Lightning epoch, which it can resume anywhere in."""
    keep = KeepLast(folder.path / "checkpoints", every=training.checkpoint_every, run=folder.fingerprint)
    logs = folder.path / "logs"
    return pl.Trainer(
        accelerator=training.accelerator,
        devices=training.devices,
        num_nodes=training.num_nodes,
        strategy=ShardedStrategy() if training.strategy == "fsdp" else training.strategy,
        precision=training.precision,
        max_epochs=1,
        accumulate_grad_batches=training.accumulate,
        val_check_interval=1,  # set to the batches of an epoch once the number of devices is known
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[stopwatch, keep, *([ProgressBar()] if progress else [])],
        plugins=[AtomicCheckpointIO()],
        logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")],
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )


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
