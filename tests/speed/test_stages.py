import json

import pytest
import timm
import torch

from conftest import SIZE, make_vit
from patchmerger.costs.model_cost import cost
from patchmerger.insertion import insert
from patchmerger.speed import stages
from patchmerger.speed.stages import measure_stages, stages_record

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"batch_size": 2, "rounds": 3, "warmup": 1, "device": torch.device("cpu")}


def test_stages_follow_the_blocks_and_add_up():
    models = {"plain": make_vit(), "merged": insert(make_vit(), 4, after=1)}
    seen = []
    found = measure_stages(models, **OPTIONS, progress=lambda done, rounds: seen.append((done, rounds)))
    assert [s.name for s in found["plain"]] == ["patch embedding", "block 1", "blocks 2–4", "head"]
    assert [s.name for s in found["merged"]] == [
        "patch embedding", "block 1", "merger after 1", "blocks 2–4", "head",
    ]  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name, model in models.items():
        assert sum(s.flops for s in found[name]) == 2 * cost(model).flops
        assert all(s.quartiles[0] <= s.seconds <= s.quartiles[1] for s in found[name])
        assert 0.5 < sum(s.share for s in found[name]) < 1.5
        assert not model._forward_hooks
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    by_name = {part.name: 2 * part.flops for part in cost(models["merged"]).parts}
    assert found["merged"][2].flops == by_name["blocks.0.merger"]
    record = stages_record(found, 3, 1, torch.device("cpu"))
    assert json.loads(json.dumps(record))["models"]["merged"][2]["name"] == "merger after 1"


def test_the_time_is_that_of_the_stage(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(stages, "perf_counter", lambda: next(clock) ** 2)
    found = measure_stages({"merged": insert(make_vit(), 4, after=2)}, **{**OPTIONS, "rounds": 1, "warmup": 1})
    # The warm-up takes six marks, 0 … 25; the round those from 36 on.
    assert [s.seconds for s in found["merged"]] == [13, 15, 17, 19, 21]
    assert found["merged"][0].share == 13 / (13 + 15 + 17 + 19 + 21)
    assert found["merged"][0].flops_per_second == found["merged"][0].flops / 13


def test_two_mergers_and_a_host_without_formulas():
    model = insert(timm.create_model("vit_small_patch16_rope_224", **SIZE), (9, 4), after=(2, 3))
    found = measure_stages({"merged": model}, **OPTIONS, image_size=32)
    assert [s.name for s in found["merged"]] == [
        "patch embedding", "blocks 1–2", "merger after 2", "block 3", "merger after 3", "block 4", "head",
    ]  # fmt: skip
