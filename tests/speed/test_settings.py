"""Settings of timings and benchmarks: checked where they are made, without torch."""

import re

import pytest

from patchmerger.speed.settings import BenchSettings, TimingSettings, check_compile, compile_name


@pytest.mark.parametrize("kind", [TimingSettings, BenchSettings])
@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"batch_size": 0}, "batch_size (0) must be a whole number of at least 1"),
        ({"batch_size": 2.5}, "batch_size (2.5) must be a whole number"),
        ({"rounds": 0}, "rounds (0) must be"),
        ({"warmup": -1}, "warmup (-1) must be"),
        ({"precision": "int8"}, "precision ('int8') must be one of 'float32', 'bf16', 'fp16'"),
        ({"compile": "fast"}, "compile ('fast') must be true, false or 'frozen'"),
    ],
)
def test_what_cannot_be_timed(kind, change, facts):
    with pytest.raises(ValueError, match=re.escape(facts)):
        kind(**change)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"batch_size": []}, "batch_size ([]) must be different ones, and at least one"),
        ({"precision": ["bf16", "bf16"]}, "precision (['bf16', 'bf16']) must be different ones"),
        ({"precision": ["float32", "tf32"]}, "precision ('tf32') must be one of"),
        ({"image_size": 0}, "image_size (0) must be"),
        ({"mode": "fast"}, "mode ('fast') must be one of 'both', 'inference', 'training'"),
        ({"against": "vit"}, "against ('vit') must be one of 'vit-pytorch'"),
        ({"mode": "training", "compile": "frozen"}, "compile ('frozen') makes constants of the weights"),
    ],
)
def test_what_cannot_be_benchmarked(change, facts):
    with pytest.raises(ValueError, match=re.escape(facts)):
        BenchSettings(**change)


def test_frozen_weights_are_not_trained():
    with pytest.raises(ValueError, match="for inference alone: give true to train"):
        TimingSettings(training=True, compile="frozen")
    check_compile("frozen", training=False)


def test_names_of_compiled_models():
    assert [compile_name(each) for each in (False, True, "frozen")] == ["eager", "compiled", "compiled, frozen"]
