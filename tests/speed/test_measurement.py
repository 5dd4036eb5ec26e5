"""Measured speed: paired, interleaved, on copies; and as it is shown."""

import copy
import json
import re
import time
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from patchmerger.insertion import insert
from patchmerger.speed import measurement
from patchmerger.speed.measurement import measure
from patchmerger.speed.settings import TimingSettings

QUICK = TimingSettings(batch_size=2, rounds=3, warmup=1, round_seconds=0.0)
TRAINING = replace(QUICK, training=True)


def tiny(**options: object) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **{**size, **options})


class Slow(nn.Module):
    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.model(x)


@pytest.mark.parametrize("training", [False, True])
def test_a_slower_model_is_measured_as_slower(training):
    models = {"quick": Slow(tiny(), 0.03), "slow": Slow(tiny(), 0.12)}
    result = measure(models, replace(QUICK, training=training), image_size=32)
    slow = result["slow"]
    assert slow.seconds > 0.12
    assert 1.4 < slow.ratio < 5
    assert slow.ratio_quartiles[0] <= slow.ratio <= slow.ratio_quartiles[1]
    assert slow.speedup == 1 / slow.ratio
    assert slow.images_per_second == 2 / slow.seconds
    assert slow.predicted_speedup is None
    assert (result["quick"].ratio, result["quick"].ratio_quartiles) == (1, (1, 1))
    other = measure(models, replace(QUICK, training=training), image_size=32, baseline="slow")
    assert other["quick"].speedup > 1.4


def test_the_ratio_is_paired_within_rounds(monkeypatch):
    # The machine gets ten times slower halfway; the ratio in each round stays what it is.
    seconds = {"a": [1.0, 1.0, 10.0, 10.0, 10.0], "b": [0.5, 0.5, 5.0, 5.0, 5.0]}
    monkeypatch.setattr(measurement, "interleaved", lambda *_: (seconds, False))
    result = measure({"a": tiny(), "b": tiny()}, QUICK)
    assert result["b"].ratio == 0.5
    assert result["b"].ratio_quartiles == (0.5, 0.5)
    assert (result["a"].seconds, result["b"].seconds) == (10.0, 5.0)
    assert result.rounds == 5


def test_models_take_turns_in_rotating_order():
    order = []

    class Recorder(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            order.append(self.name)
            time.sleep(0.001)
            return x

    measure({n: Recorder(n) for n in "abc"}, replace(QUICK, batch_size=1), image_size=8)
    turns = [name for i, name in enumerate(order) if i == 0 or order[i - 1] != name]
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"  # warm-up, then three rounds


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("training", [False, True])
def test_models_are_left_as_they_are(training, precision):
    plain = tiny().train()
    plain.head.weight.grad = torch.ones_like(plain.head.weight)
    plain.head.bias.requires_grad_(False)
    merged = insert(copy.deepcopy(plain), num_tokens=4).eval()
    models = {"plain": plain, "merged": merged}
    before = {name: copy.deepcopy(model.state_dict()) for name, model in models.items()}
    random_state = torch.random.get_rng_state()
    result = measure(models, replace(QUICK, training=training, precision=precision))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    for name, model in models.items():
        assert all(torch.equal(before[name][key], value) for key, value in model.state_dict().items())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert plain.training
    assert not merged.training
    assert torch.equal(plain.head.weight.grad, torch.ones_like(plain.head.weight))
    assert plain.patch_embed.proj.weight.grad is None
    assert result["merged"].predicted_speedup > 1.2
    assert result["merged"].params == result["plain"].params + 4 * 32 + 2 * 32 + 5 * 4
    merged = result["merged"]
    assert 0 < merged.activation_memory < merged.peak_memory
    weights = (2 if precision != "float32" and not training else 4) * merged.params
    assert merged.peak_memory - merged.activation_memory >= weights * (4 if training else 1)
    assert (result.training, result.precision) == (training, precision)


def test_inference_and_training_run_as_documented():
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 10)

        def forward(self, x):
            out = self.head(x.mean((2, 3)))
            seen.append((self.training, torch.is_inference_mode_enabled(), self.head.weight.dtype, out.dtype))
            if self.training and torch.is_grad_enabled():
                weights.append(self.head.weight.detach().clone())
            return out

    weights = []
    measure({"probe": Probe()}, replace(QUICK, precision="bf16"), image_size=8)
    assert set(seen) == {(False, True, torch.bfloat16, torch.bfloat16)}
    seen.clear()
    measure({"probe": Probe()}, replace(TRAINING, precision="bf16"), image_size=8)
    assert set(seen) == {(True, False, torch.float32, torch.bfloat16)}
    assert not torch.equal(weights[0], weights[-1])


def test_another_image_size_is_set_on_the_copies():
    plain = tiny()
    result = measure({"plain": plain, "merged": insert(tiny(), 4)}, QUICK, image_size=(64, 32))
    assert result.image_size == (64, 32)
    assert plain.patch_embed.img_size == (32, 32)
    with pytest.raises(ValueError, match=re.escape("(30, 30) does not divide by the patch size (8, 8)")):
        measure({"plain": plain}, QUICK, image_size=30)


@pytest.mark.parametrize("training", [False, True])
def test_models_of_transformers_and_torchvision(training):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=8)
    theirs = transformers.ViTForImageClassification(config)
    vision = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    for plain in (theirs, vision):
        models = {"plain": plain, "merged": insert(copy.deepcopy(plain), 4)}
        result = measure(models, replace(QUICK, training=training))
        assert result["merged"].predicted_speedup > 1
        assert result.image_size == (32, 32)


def test_two_towers_are_measured_on_images_alone():
    pytest.importorskip("transformers")
    from hosts.tiny import make_model

    plain = make_model("CLIPModel")
    result = measure({"plain": plain, "merged": insert(copy.deepcopy(plain), 3)}, QUICK)
    assert result["merged"].predicted_speedup > 1
    with pytest.raises(ValueError, match=r"'plain'.* compares images with texts: its inference is measured"):
        measure({"plain": plain}, replace(QUICK, training=True))


def test_the_roofline_and_what_is_attained_of_it():
    models = {"plain": tiny(), "merged": insert(tiny(), 4)}
    merged = measure(models, QUICK, least_seconds={"plain": 3.0, "merged": 2.0})["merged"]
    assert merged.roofline_speedup == 1.5
    assert merged.of_roofline == merged.speedup / 1.5
    assert merged.of_predicted == merged.speedup / merged.predicted_speedup
    assert measure(models, QUICK)["merged"].roofline_speedup is None


def test_speedup_over_another_than_the_baseline(monkeypatch):
    seconds = {"a": [1.0, 1.0, 1.0], "b": [2.0, 4.0, 6.0], "c": [1.0, 1.0, 2.0]}
    monkeypatch.setattr(measurement, "interleaved", lambda *_: (seconds, False))
    result = measure({"a": tiny(), "b": tiny(), "c": tiny()}, QUICK)
    assert result.speedup_over("c", "b") == (3.0, (2.5, 3.5))
    assert result["b"].speedup_quartiles == (1 / 5, 1 / 3)


def test_round_trip_and_table():
    result = measure({"plain": tiny(), "merged": insert(tiny(), 4)}, QUICK)
    record = json.loads(json.dumps(result.as_dict()))
    assert record == result.as_dict()
    assert record["environment"]["torch"] == torch.__version__
    assert record["rounds"] == 3
    assert [t["speedup"] for t in record["timings"]] == [t.speedup for t in result.timings]
    assert [len(t["round_seconds"]) for t in record["timings"]] == [3, 3]
    text = str(result)
    assert "Inference, batch of 2, 32 × 32 pixels, float32" in text
    assert f"{result['merged'].predicted_speedup:.2f}×" in text
    assert "median of 3 rounds, interleaved" in text
    with pytest.raises(KeyError, match="'other' was not measured; there are plain, merged"):
        result["other"]


def test_a_model_that_was_changed_in_place_is_not_compared_with_itself():
    model = tiny()
    with pytest.raises(ValueError, match=r"models\['merged'\] is the same object as models\['plain'\].*copy.deepcopy"):
        measure({"plain": model, "merged": insert(model, 4, 1)}, QUICK)


@pytest.mark.parametrize(("at", "kept"), [(4, 4), (3, 3), (2, None)])
def test_an_interrupt_keeps_what_was_measured(at, kept):
    def interrupt(done: int, rounds: int) -> None:
        Stop.armed = done == at

    class Stop(nn.Module):
        armed = False

        def forward(self, x):
            if Stop.armed:
                raise KeyboardInterrupt("Ctrl-C")
            return x

    options = {"settings": replace(QUICK, batch_size=1, rounds=9), "image_size": 8, "progress": interrupt}
    if kept is None:
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            measure({"a": Stop(), "b": Stop()}, **options)
        return
    result = measure({"a": Stop(), "b": Stop()}, **options)
    assert result.interrupted
    assert result.rounds == kept
    assert [len(t.round_seconds) for t in result.timings] == [kept, kept]
    assert f"median of {kept} rounds (interrupted)" in str(result)


def test_progress_is_reported():
    seen = []
    measure({"plain": tiny()}, QUICK, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size (0, 0) must be at least one pixel"),
        ({"baseline": "other"}, "baseline ('other') must be one of the models: plain"),
        ({"device": "nonsense"}, "device ('nonsense') is not there"),
    ],
)
def test_arguments_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        measure({"plain": tiny()}, replace(QUICK, device=change.pop("device", None)), **change)


def test_models_that_cannot_work():
    with pytest.raises(ValueError, match="models is empty"):
        measure({}, QUICK)
    with pytest.raises(ValueError, match=re.escape("models['plain'] cannot be measured: it is on the meta device")):
        measure({"plain": tiny().to("meta")}, QUICK)
    with pytest.raises(ValueError, match=re.escape("image_size (None) must be given: Linear does not say its own")):
        measure({"plain": nn.Linear(1, 1)}, QUICK)
    with pytest.raises(ValueError, match=re.escape("models['plain'] has no parameter that requires a gradient")):
        measure({"plain": tiny().requires_grad_(False)}, TRAINING)
    with pytest.raises(ValueError, match=re.escape("models['plain'] gives (2, 17, 10)")):
        measure({"plain": tiny(global_pool="")}, TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiled(training):
    models = {"plain": tiny(), "merged": insert(tiny(), 4)}
    result = measure(models, replace(QUICK, training=training, compile=True))
    assert result.compile
    assert "compiled" in str(result)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [([1.0, 1.0, 1.0], "only 3 rounds"), ([1.0] * 5, None), ([0.8, 0.8, 1.0, 1.2, 1.2], "wide quartiles")],
)
def test_an_uncertain_speedup_says_why(monkeypatch, seconds, reason):
    times = {"plain": [2.0] * len(seconds), "merged": seconds}
    monkeypatch.setattr(measurement, "interleaved", lambda *_: (times, False))
    found = measure({"plain": tiny(), "merged": insert(tiny(), 4)}, QUICK)
    assert found["merged"].uncertain == reason
    assert found.as_dict()["timings"][1]["uncertain"] == reason
    assert (f"uncertain: merged ({reason})" in str(found)) == (reason is not None)
