"""Benchmarks of tiny models, on ceilings that need no measuring."""

from functools import partial

import pytest

from conftest import make_vit
from patchmerger.models import FoundModel
from patchmerger.speed import candidates, rows
from patchmerger.speed.roofline import Ceilings


@pytest.fixture
def tiny_models(monkeypatch):
    """Every name is a tiny model, of which ``seed=None`` gives one on the meta device."""
    names = []

    def find(name, *, image_size=None, weights="trained", seed=0):
        names.append(name)
        model = make_vit("attention pooling" if name == "other" else "class token", img_size=image_size or 32)
        return FoundModel(name, model.to("meta") if weights == "meta" else model)

    monkeypatch.setattr(candidates, "find_model", find)
    monkeypatch.setattr(rows, "measure_ceilings", lambda device, kind: Ceilings("a device", kind, 1, 1e9, 1e9))
    monkeypatch.setattr(rows, "measure", partial(rows.measure, round_seconds=0.0))
    return names
