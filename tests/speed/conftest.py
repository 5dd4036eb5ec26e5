"""Benchmarks of tiny models, on ceilings that need no measuring."""

from functools import partial

import pytest

from conftest import make_vit
from patchmerger.speed import candidates, rows
from patchmerger.speed.roofline import Ceilings


@pytest.fixture
def tiny_models(monkeypatch):
    """Every name is a tiny model, of which ``seed=None`` gives one on the meta device."""
    names = []

    def named(name, image_size=None, *, seed=None):
        names.append(name)
        model = make_vit("attention pooling" if name == "other" else "class token", img_size=image_size or 32)
        return model.to("meta") if seed is None else model

    monkeypatch.setattr(candidates, "named_model", named)
    monkeypatch.setattr(rows, "measure_ceilings", lambda device, kind: Ceilings("a device", kind, 1, 1e9, 1e9))
    monkeypatch.setattr(rows, "measure", partial(rows.measure, round_seconds=0.0))
    return names
