"""Settings of a model and of its mergers: checked where they are made, without torch."""

from pathlib import Path
from typing import get_args

import pytest

from patchmerger.models.settings import MergeSettings, ModelSettings, Preset
from patchmerger.presets import PRESETS
from patchmerger.training.settings import Recipe


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"num_tokens": 0}, r"merge.num_tokens \(0\) must be .* at least 1"),
        ({"num_tokens": []}, r"merge.num_tokens \(\[\]\)"),
        ({"num_tokens": [8, True], "after": [1, 2]}, r"merge.num_tokens \(\[8, True\]\)"),
        ({"after": -1}, r"merge.after \(-1\) must be"),
        ({"num_tokens": [8, 4]}, r"merge.num_tokens \(\[8, 4\]\) is a list.*merge.after"),
        ({"num_tokens": [8, 4], "after": [1, 2, 3]}, r"merge.after \(\[1, 2, 3\]\).*merge.num_tokens \(\[8, 4\]\)"),
        ({"num_tokens": 8, "after": [2, 2]}, r"merge.after \(\[2, 2\]\).*different blocks"),
        ({"preset": "papper"}, r"merge.preset \('papper'\) must be one of .*'paper'"),
        ({"norm": "values"}, r"merge.norm \('values'\) must be one of .*'both'"),
        ({"positions": "nowhere"}, r"merge.positions \('nowhere'\) must be one of 'centroid'"),
        ({"prefix": "drop"}, r"merge.prefix \('drop'\) must be one of 'keep', 'merge'"),
        ({"reducer": "max"}, r"merge.reducer \('max'\) must be one of .*'average'"),
        ({"scale": float("nan")}, r"merge.scale \(nan\)"),
        ({"logit_std": 0}, r"merge.logit_std \(0\) must be above 0"),
        ({"reducer": "average", "norm": "both"}, r"merge.norm.* mean nothing with merge.reducer='average'"),
        ({"num_heads": 0}, r"merge.num_heads \(0\) must be a whole number of at least 1"),
        ({"reducer": "tome", "num_heads": 2}, r"merge.num_heads \(2\) means nothing with merge.reducer='tome'"),
    ],
)
def test_settings_that_no_model_can_take_are_refused(settings, facts):
    with pytest.raises(ValueError, match=facts):
        MergeSettings(**settings)


def test_one_number_of_tokens_holds_for_each_place():
    assert MergeSettings(8, after=[3, 6]).places() == ([3, 6], [8, 8])
    assert MergeSettings(8).places() == ([None], [8])


def test_every_preset_can_be_asked_for():
    assert get_args(Preset) == tuple(PRESETS)


def test_an_image_size_is_named_once():
    assert ModelSettings("vit_tiny_patch16_224").sized(64).args == {"img_size": 64}
    with pytest.raises(ValueError, match=r"image_size \(32\) and model.args"):
        ModelSettings("vit_tiny_patch16_224", {"img_size": 64}).sized(32)


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [
        ({}, "scratch"),
        ({"merge": MergeSettings(num_tokens=4, num_heads=2)}, "scratch"),
        ({"merge": MergeSettings(preset="paper")}, "paper"),
        ({"merge": MergeSettings(norm="both")}, None),
        ({"merge": MergeSettings(reducer="average")}, None),
        ({"merge": MergeSettings(), "model": ModelSettings("vit_tiny_patch16_224", pretrained=True)}, None),
        ({"merge": MergeSettings(), "init": Path("runs/plain/model")}, None),
    ],
)
def test_the_preset_for_training_from_scratch_is_for_that_alone(recipe, preset):
    assert Recipe(**recipe).resolved().merge.preset == preset
    assert Recipe(merge=MergeSettings()).resolved(model_given=True).merge.preset is None
    assert Recipe(merge=None).resolved().merge is None


def test_what_earlier_runs_recorded_beside_a_reducer_is_read():
    assert MergeSettings(reducer="average", preset="default").reducer == "average"
    with pytest.raises(ValueError, match=r"merge.preset.* mean nothing with merge.reducer='average'"):
        MergeSettings(reducer="average", preset="paper")
