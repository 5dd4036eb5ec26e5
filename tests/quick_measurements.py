"""Speed is measured as ever, but on a few images: what is made of it does not depend on how many these are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from patchmerger.speed.measurement import Measurement, measure
from patchmerger.speed.settings import TimingSettings


@contextmanager
def quick_measurements(*names: str) -> Iterator[None]:
    """Batches of four images, each timing as short as a step is, wherever a module has ``measure`` by these names."""

    def few(models: Mapping[str, nn.Module], settings: TimingSettings, **options: Any) -> Measurement:
        return measure(models, replace(settings, batch_size=4, warmup=1, round_seconds=0.001), **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(name, few)
        yield
