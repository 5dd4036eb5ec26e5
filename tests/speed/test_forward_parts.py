"""Parts of a forward pass: their times, shares and FLOPs."""

from dataclasses import replace

import pytest
import timm

from conftest import SIZE, make_vit
from patchmerger.costs.model_cost import cost
from patchmerger.insertion import insert
from patchmerger.speed import forward_parts
from patchmerger.speed.forward_parts import measure_forward_parts
from patchmerger.speed.settings import TimingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TimingSettings(batch_size=2, rounds=3, warmup=1)


def test_parts_follow_the_blocks_and_add_up():
    models = {"plain": make_vit(), "merged": insert(make_vit(), 4, after=1)}
    seen = []
    found = measure_forward_parts(models, SETTINGS, progress=lambda done, rounds: seen.append((done, rounds)))
    assert [s.name for s in found["plain"]] == ["patch embedding", "block 1", "blocks 2–4", "head"]
    assert [s.name for s in found["merged"]] == [
        "patch embedding", "block 1", "merger after 1", "blocks 2–4", "head",
    ]  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name, model in models.items():
        assert sum(s.flops for s in found[name]) == 2 * cost(model).flops
        assert all(s.quartiles[0] <= s.seconds <= s.quartiles[1] for s in found[name])
        assert 0.2 < sum(s.share for s in found[name]) < 3  # medians of three rounds, on a busy machine
        assert not model._forward_hooks
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    by_name = {part.name: 2 * part.flops for part in cost(models["merged"]).parts}
    assert found["merged"][2].flops == by_name["blocks.0.merger"]


def test_the_time_is_that_of_the_part(monkeypatch):
    count = iter(range(1000))
    monkeypatch.setattr(forward_parts, "clock", lambda device: lambda: next(count) ** 2)
    found = measure_forward_parts({"merged": insert(make_vit(), 4, after=2)}, replace(SETTINGS, rounds=1))
    # The warm-up takes six marks, 0 … 25; the round those from 36 on.
    assert [s.seconds for s in found["merged"]] == [13, 15, 17, 19, 21]
    assert found["merged"][0].share == 13 / (13 + 15 + 17 + 19 + 21)
    assert found["merged"][0].flops_per_second == found["merged"][0].flops / 13


def test_two_mergers_and_another_family():
    model = insert(timm.create_model("vit_small_patch16_rope_224", **SIZE), (9, 4), after=(2, 3))
    found = measure_forward_parts({"merged": model}, SETTINGS, image_size=32)
    assert [s.name for s in found["merged"]] == [
        "patch embedding", "blocks 1–2", "merger after 2", "block 3", "merger after 3", "block 4", "head",
    ]  # fmt: skip
