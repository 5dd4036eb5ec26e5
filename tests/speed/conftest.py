"""Benchmarks of tiny models, with peak rates that need no measuring."""

from functools import partial

import pytest

from conftest import make_vit
from patchmerger.models import FoundModel
from patchmerger.speed import candidates, suite
from patchmerger.speed.roofline import PeakRates
from patchmerger.speed.settings import TimingSettings


@pytest.fixture
def tiny_models(monkeypatch):
    """Every name is a tiny model, of which ``seed=None`` gives one on the meta device."""
    names = []

    def find(name, *, architecture=None, image_size=None, seed=None):
        names.append(name)
        model = make_vit("attention pooling" if name == "other" else "class token", img_size=image_size or 32)
        return FoundModel(name, model.to("meta") if seed is None else model)

    monkeypatch.setattr(candidates, "find_untrained", find)
    monkeypatch.setattr(suite, "measure_peak_rates", lambda device, kind: PeakRates("a device", kind, 1, 1e9, 1e9))
    monkeypatch.setattr(suite, "TimingSettings", partial(TimingSettings, round_seconds=0.0))
    return names
