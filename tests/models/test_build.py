"""Models from settings: names, arguments, mergers."""

import pytest
import timm

from patchmerger.costs.model_cost import cost
from patchmerger.insertion.inserted import mergers
from patchmerger.merger import PatchMerger
from patchmerger.models.build import build_model, find_untrained
from patchmerger.models.settings import MergeSettings, ModelSettings
from patchmerger.reducers import AveragePool

SMALL = ModelSettings(
    "vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 8, "num_heads": 2}
)


@pytest.mark.parametrize(("native", "size"), [(8, 32), (28, 32), (32, 32), (64, 64), (500, 64)])
def test_the_default_model_has_64_tokens(native, size):
    model = build_model(ModelSettings().resolve(native), num_classes=10)
    assert model.patch_embed.num_patches == 64
    assert cost(model).image_size == (size, size)


def test_a_named_model_is_left_as_it_is():
    assert SMALL.resolve(8) is SMALL


def test_merge_settings_become_a_merger():
    model = build_model(SMALL, MergeSettings(num_tokens=[16, 4], after=[2, 5], preset="vit-pytorch"), num_classes=3)
    found = mergers(model)
    assert [(m.after, m.num_tokens) for m in found] == [(2, 16), (5, 4)]
    assert all(isinstance(m.module, PatchMerger) for m in found)
    assert {(m.module.norm_mode, round(m.module.scale, 6)) for m in found} == {("both", round(32**-0.5, 6))}


@pytest.mark.parametrize(
    ("settings", "model_args", "expected"),
    [
        ({}, {}, ("grid", 1)),
        ({"num_heads": 2}, {}, ("grid", 2)),
        ({"preset": "scratch"}, {}, ("rows", 4)),
        ({"preset": "scratch", "num_heads": 2}, {}, ("rows", 2)),
        ({"preset": "scratch", "prior": "grid"}, {}, ("grid", 4)),
        ({"preset": "scratch"}, {"embed_dim": 34}, ("rows", 2)),
        ({"preset": "scratch", "num_tokens": 9}, {}, ("grid", 4)),  # more than rows of patches
        ({"preset": "scratch", "keep_rate": 0.5}, {}, ("grid", 4)),
        ({"preset": "scratch"}, {"patch_drop_rate": 0.5}, (None, 4)),
        ({"preset": "scratch", "prefix": "merge"}, {"class_token": False, "global_pool": "avg"}, (None, 4)),
        ({"preset": "default"}, {}, (None, 1)),
        ({"preset": "paper", "num_heads": 2}, {}, (None, 2)),
        ({"norm": "both"}, {}, (None, 1)),
        ({"prior": "rows"}, {}, ("rows", 1)),
    ],
)
def test_where_queries_begin_and_how_many_heads_they_have(settings, model_args, expected):
    model = ModelSettings(SMALL.name, SMALL.args | model_args)
    (found,) = mergers(build_model(model, MergeSettings(**settings), num_classes=3))
    prior = found.module.prior
    assert (None if prior is None else prior.layout, found.module.num_heads) == expected


def test_norm_and_scale_take_the_presets_place():
    (found,) = mergers(build_model(SMALL, MergeSettings(preset="paper", norm="none", scale=0.5), num_classes=3))
    assert (found.module.norm_mode, found.module.scale) == ("none", 0.5)


@pytest.mark.parametrize(("settings", "std"), [({"preset": "mean", "logit_std": 2.0}, 2.0), ({"scale": 0.5}, 2.0)])
def test_the_logit_std_of_the_queries_at_the_start(settings, std):
    (found,) = mergers(build_model(SMALL, MergeSettings(num_tokens=32, **settings), num_classes=3))
    assert float(found.module.weight.detach().std()) == pytest.approx(std / 32**0.5, rel=0.15)


def test_average_pooling_has_heads_too():
    settings = MergeSettings(reducer="average", num_tokens=[8, 4], after=[2, 5], num_heads=4)
    found = mergers(build_model(SMALL, settings, num_classes=3))
    assert [(type(m.module), m.module.num_heads) for m in found] == [(AveragePool, 4)] * 2


def test_average_pooling_stands_in_several_places():
    model = build_model(SMALL, MergeSettings(num_tokens=[16, 4], after=[2, 5], reducer="average"), num_classes=3)
    assert [type(m.module) for m in mergers(model)] == [AveragePool, AveragePool]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (ModelSettings(), r"model.name must be given"),
        (
            ModelSettings("vit_basse_patch16_224"),
            r"no architecture.* did you mean vit_base_patch16_224",
        ),
        (ModelSettings("q" * 30), r"timm.list_models"),
        (ModelSettings("vit_tiny_patch16_224", {"num_haeds": 3}), r"model.args \({'num_haeds': 3}\) do not fit"),
        (ModelSettings("vit_tiny_patch16_224", {"global_pool": "middle"}), r"do not fit .*pooling"),
        (ModelSettings("vit_dwee_patch16_reg1_gap_256", pretrained=True), r"has no weights for|no weights"),
    ],
)
def test_models_that_cannot_be_built_are_refused(settings, text):
    if settings.pretrained and timm.is_model_pretrained(settings.name):
        pytest.skip("timm has weights for it now")
    with pytest.raises(ValueError, match=text):
        build_model(settings, num_classes=3)


def test_architectures_are_made_for_a_size_with_random_weights_or_none():
    first, second, other = (find_untrained("vit_tiny_patch16_224", image_size=32, seed=s) for s in (0, 0, 1))
    assert first.fingerprint == second.fingerprint != other.fingerprint
    assert first.model.patch_embed.img_size == (32, 32)
    assert next(find_untrained("vit_tiny_patch16_224").model.parameters()).is_meta
    with pytest.raises(ValueError, match=r"image_size \(0, 0\)"):
        find_untrained("vit_tiny_patch16_224", image_size=0)
    with pytest.raises(ValueError, match=r"image_size \(33, 33\).*patch size.*\(32, 32\)"):
        find_untrained("vit_tiny_patch16_224", image_size=33)
