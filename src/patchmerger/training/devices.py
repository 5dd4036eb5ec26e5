"""The Lightning trainer on the devices that are asked for, which are named where they cannot be had."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from patchmerger.training.settings import TrainingSettings
from patchmerger.training.sharding import ShardedStrategy

_REFUSALS = (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError, RuntimeError)
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


def on_devices(training: TrainingSettings, **further: Any) -> pl.Trainer:
    """A trainer on the devices of the settings, with ``further`` arguments of Lightning.

    Raises:
        ValueError: They are not here, or do not go together.
    """
    check_accelerator(training.accelerator, "training.accelerator")
    strategy = ShardedStrategy() if training.strategy == "fsdp" else training.strategy
    try:
        return pl.Trainer(
            accelerator=training.accelerator, devices=training.devices, num_nodes=training.num_nodes,
            strategy=strategy, precision=training.precision, **further,
        )  # fmt: skip
    except _REFUSALS as error:
        raise ValueError(
            f"training.devices ({training.devices!r}) with training.accelerator ({training.accelerator!r}), "
            f"training.strategy ({training.strategy!r}) and training.precision ({training.precision!r}) cannot be had "
            f"here: {_first_line(error)}; 1 device with 'auto', 'auto' and '32-true' always can"
        ) from error


@quiet()
def check_devices(training: TrainingSettings) -> None:
    """Raise ``ValueError`` where the devices of the settings are not here, before anything long begins."""
    on_devices(training, **_NOTHING_ELSE)


@quiet()
def check_accelerator(name: str, argument: str) -> None:
    """Raise ``ValueError`` where there is no such accelerator here, with the name of the argument."""
    try:
        pl.Trainer(accelerator=name, devices=1, **_NOTHING_ELSE)
    except _REFUSALS as error:
        raise ValueError(
            f"{argument} ({name!r}) is not here: {_first_line(error)}; 'auto' takes what there is, and 'cpu' always is"
        ) from error


_NOTHING_ELSE: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".!")
