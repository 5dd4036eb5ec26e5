"""Plans: what meets a budget, the nearest where none does, and what was measured of it."""

import copy
import json
import re
from dataclasses import replace

import pytest
import timm

from conftest import SIZE, make_vit
from patchmerger.acceleration import planning
from patchmerger.acceleration.planning import plan
from patchmerger.costs.model_cost import cost
from patchmerger.hub import save
from patchmerger.insertion import insert
from patchmerger.runs.meta_device import meta_device
from patchmerger.speed.settings import TimingSettings

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = TimingSettings(batch_size=1, rounds=1, warmup=1, round_seconds=0.0)


def test_the_papers_model():
    found = plan("vit_base_patch16_224", speedup=1.9)
    first = found.placements[0]
    assert (first.after, first.num_tokens) == ((6,), (8,))
    assert first.line == "patchmerger.insert(model, num_tokens=8, after=6)"
    assert first.flops == 18_450_923_520
    with meta_device():
        model = timm.create_model("vit_base_patch16_224")
    assert first.flops == cost(first.apply(copy.deepcopy(model))).flops
    text = str(found)
    assert "vit_base_patch16_224, 224 × 224 pixels, 35.13 GFLOPs: 1.9× fewer FLOPs or better" in text
    assert first.line in text
    assert json.loads(json.dumps(found.as_dict()))["placements"][0]["line"] == first.line


def test_a_budget_in_flops():
    found = plan(make_vit(), gflops=0.0016)
    assert found.speedup is None
    assert found.budget == 0.0016e9
    assert all(p.flops <= 0.0016e9 for p in found.placements)
    assert "VisionTransformer, 32 × 32 pixels" in str(found)
    assert "0.0016 GFLOPs or better" in str(found)


def test_twice_by_default_and_tokens_as_there_are_patches():
    found = plan(make_vit(depth=6), limit=1)
    assert found.speedup == 2
    assert len(found.placements) == 1
    assert found.placements[0].num_tokens in ((4,), (8,))  # of 16 patches
    pairs = plan(make_vit(img_size=16, depth=6), speedup=1.7, mergers=2)  # 4 patches
    assert {p.num_tokens for p in pairs.placements} == {(2, 1)}


def test_two_mergers_and_positions_that_the_host_needs():
    model = timm.create_model("vit_relpos_small_patch16_224", **SIZE | {"depth": 5})
    found = plan(model, mergers=2, num_tokens=[6, 2], speedup=1.8)
    assert found.placements[0].num_tokens == (6, 2)
    assert 'positions="drop"' in found.placements[0].line
    assert insert(model, [6, 2], found.placements[0].after, positions="drop") is model


def test_the_model_stays_as_it_is():
    model = make_vit().train()
    keys = list(model.state_dict())
    plan(model, speedup=1.3, measure=1, timing=QUICK)
    assert list(model.state_dict()) == keys
    assert model.training


def test_measured():
    found = plan(
        make_vit(), speedup=1.3, num_tokens=[2, 4, 8], measure=2, timing=replace(QUICK, batch_size=2, rounds=3)
    )
    assert [t.name for t in found.measured.timings] == ["plain", *(p.line for p in found.placements[:2])]
    text = str(found)
    assert "measured (quartiles)" in text
    assert re.search(r"measured, \d of 2 reach 1\.30×; median of 3 rounds, interleaved, on ", text)
    assert json.loads(json.dumps(found.as_dict()))["measured"]["rounds"] == 3


def test_a_slower_model_is_told(monkeypatch):
    real = planning.measure_speed

    def reversed_roles(*args, **options):
        measured = real(*args, **options)
        slow = [replace(t, ratio=1.25) if t.name != "plain" else t for t in measured.timings]
        return replace(measured, timings=tuple(slow))

    monkeypatch.setattr(planning, "measure_speed", reversed_roles)
    text = str(plan(make_vit(), speedup=1.3, measure=1, timing=QUICK))
    assert "measured, 0 of 1 reach 1.30×" in text
    assert "slower than the plain model here: patchmerger.insert(model, num_tokens=" in text


def test_by_name_at_another_size(tmp_path):
    found = plan("vit_tiny_patch16_224", image_size=64, speedup=1.5, measure=1, timing=QUICK)
    assert found.image_size == (64, 64)
    assert found.measured.image_size == (64, 64)
    save(make_vit(depth=6), tmp_path / "run" / "model")
    assert plan(tmp_path / "run").placements == plan(make_vit(depth=6)).placements


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedup": 40}, "speedup (40) is more than merging saves in VisionTransformer: the nearest that can be had"),
        ({"gflops": 1e-6}, "gflops (1e-06) is more than merging saves in VisionTransformer: the nearest"),
        ({"gflops": 40}, "gflops (40) is met without a merger: VisionTransformer has 0.00"),
        ({"speedup": 1.1, "mergers": 2}, "speedup (1.1) needs no second merger"),
        ({"speedup": 1}, "speedup (1) must be above 1"),
        ({"gflops": 0}, "gflops (0) must be above 0"),
        ({"speedup": 2, "gflops": 1}, "speedup (2) and gflops (1) are two budgets"),
        ({"mergers": 3}, "mergers (3) must be 1 or 2"),
        ({"limit": 0}, "limit (0) must be a whole number of at least 1"),
        ({"measure": -1}, "measure (-1) must be 0 or the number"),
        ({"num_tokens": []}, "num_tokens ([]) must be whole numbers from 1 to 15"),
        ({"num_tokens": [16]}, "num_tokens ([16]) must be whole numbers from 1 to 15: 16 patches arrive"),
        ({"num_tokens": [8, 8], "mergers": 2}, "must be at least 2 numbers for 2 mergers"),
        ({"image_size": 30}, "image_size (30, 30) does not divide by the patch size (8, 8)"),
    ],
)
def test_what_cannot_be_had(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(make_vit(), **arguments)


def test_models_that_cannot_be_planned():
    with pytest.raises(ValueError, match="has a merger already"):
        plan(insert(make_vit(), 4))
    with pytest.raises(ValueError, match=re.escape("mergers (2) must be fewer than the 2 blocks")):
        plan(make_vit(depth=2), mergers=2)
    with pytest.raises(ValueError, match="did you mean vit_base_patch16_224"):
        plan("vit_bse_patch16_224")
    with pytest.raises(ValueError, match="ResNet cannot take a merger"):
        plan("resnet18")


def test_the_nearest_can_be_had():
    with pytest.raises(ValueError, match="the nearest") as error:
        plan(make_vit(), speedup=40, num_tokens=[4, 2])
    nearest = float(re.search(r"nearest that can be had is ([\d.]+)×", str(error.value))[1])
    found = plan(make_vit(), speedup=nearest - 0.01, num_tokens=[4, 2])
    assert (found.placements[0].after, found.placements[0].num_tokens) == ((1,), (2,))
