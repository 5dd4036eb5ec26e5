"""The census on a sample of each family, and what it must not be taken in by."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from hosts.own import PATCHES, WIDTH, MyViT
from patchmerger import Host, register_host
from patchmerger.census import check as census
from patchmerger.census import survey
from patchmerger.census.census import Finding
from patchmerger.census.survey import examine
from patchmerger.hosts import registry as find
from patchmerger.hosts.example_inputs import Example
from patchmerger.hosts.timm.supported import describe_timm

pytestmark = pytest.mark.usefixtures("one_thread")

# architecture → options that make it shallow, and what is to be found: positions, prefix, patches
MERGED: dict[str, tuple[dict[str, Any], str | None, int, int]] = {
    "vit_tiny_patch16_224": ({"depth": 2}, None, 1, 196),
    "vit_base_patch16_siglip_224": ({"depth": 2}, None, 0, 196),
    "vit_small_patch14_reg4_dinov2": ({"depth": 2}, None, 5, 1369),
    "vit_tiny_r_s16_p8_224": ({"depth": 2}, None, 1, 49),
    "flexivit_small": ({"depth": 2}, None, 1, 225),
    "deit_tiny_distilled_patch16_224": ({"depth": 2}, None, 2, 196),
    "cait_xxs24_224": ({"depth": 2}, None, 0, 196),
    "eva02_tiny_patch14_224": ({"depth": 2}, "centroid", 1, 256),
    "vit_small_patch16_dinov3": ({"depth": 2}, "centroid", 5, 256),
    "vit_small_patch16_rope_mixed_224": ({"depth": 2}, "centroid", 1, 196),
    "beit_base_patch16_224": ({"depth": 2}, "drop", 1, 196),
    "beitv2_base_patch16_224": ({"depth": 2}, "drop", 1, 196),
    "vit_relpos_small_patch16_224": ({"depth": 2}, "drop", 0, 196),
    "vit_srelpos_small_patch16_224": ({"depth": 2}, "drop", 0, 196),
    "naflexvit_base_patch16_gap": ({"depth": 2}, None, 4, 576),
    "qwen3_vit_88m": ({"depth": 2}, "centroid", 0, 2304),
    "deepseek_vit_412m": ({"depth": 2}, "centroid", 0, 1521),
}
REFUSED = {
    "resnet10t": "not one sequence",
    "swin_tiny_patch4_window7_224": "not one sequence",
    "tnt_s_patch16_224": "not one sequence",
    "xcit_nano_12_p16_224": "grid",
    "samvit_base_patch16": "grid",
    "mixer_s32_224": "tied to N",
}


def on_meta(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):
        return make(*args, **kwargs)


def of_timm(name: str, **options: Any) -> Finding:
    return examine("timm", name, partial(on_meta, timm.create_model, name, **options))


@pytest.mark.parametrize("name", MERGED)
def test_a_sample_of_timm_is_merged(name):
    options, positions, prefix, patches = MERGED[name]
    found = of_timm(name, **options)
    assert (found.status, found.reason if positions != "drop" else None) == ("merged", None)
    assert (found.positions, found.blocks, found.prefix, found.patches) == (positions, 2, prefix, patches)
    assert found.kind == ("relative bias" if positions == "drop" else None)
    if positions == "drop":  # refused by default
        assert found.way_out.startswith("positions='drop' leaves the bias out")


@pytest.mark.parametrize("name", REFUSED)
def test_a_sample_of_timm_is_refused(name):
    found = of_timm(name)
    assert (found.status, found.kind) == ("refused", REFUSED[name])
    assert found.reason
    assert found.way_out


def test_torchvision():
    make = partial(on_meta, VisionTransformer, 224, 16, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=64)
    found = examine("torchvision", "vit", make)
    assert found == Finding("torchvision", "vit", "VisionTransformer", "merged", blocks=2, prefix=1, patches=196)


SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
OF_TRANSFORMERS: dict[str, tuple[dict[str, Any], str | None, int, int]] = {
    "ViTModel": (SMALL, None, 1, 196),
    "DeiTForImageClassification": (SMALL, None, 2, 196),
    "Dinov2WithRegistersModel": (SMALL, None, 5, 196),
    "DINOv3ViTModel": (SMALL | {"num_register_tokens": 4}, "centroid", 5, 196),
    "BeitModel": (SMALL | {"use_relative_position_bias": True}, "drop", 1, 196),
    "SiglipVisionModel": (SMALL, None, 0, 196),
    "ASTModel": (SMALL, None, 2, 1212),
    "VideoMAEModel": (SMALL, None, 0, 1568),
}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_sample_of_transformers_is_merged(name):
    import transformers

    config, *expected = OF_TRANSFORMERS[name]
    cls = getattr(transformers, name)
    found = examine("transformers", name, lambda: on_meta(cls, cls.config_class(**config)))
    assert (found.family, found.status, found.reason if found.kind is None else None) == (name, "merged", None)
    assert [found.positions, found.prefix, found.patches] == expected


def test_not_buildable():
    def build() -> nn.Module:
        raise ImportError("needs a library\nthat nobody has")

    found = examine("timm", "some", build)
    reason = "ImportError: needs a library that nobody has"
    assert found == Finding("timm", "some", "", "not buildable", reason=reason)


# What it must not believe


def lie(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    def describe(model: nn.Module) -> Host:
        return replace(describe_timm(model), **changed)

    monkeypatch.setitem(find._LIBRARIES, "timm", describe)


@pytest.mark.parametrize(
    ("name", "lies", "reason"),
    [
        ("vit_tiny_patch16_224", {"num_prefix_tokens": 0}, "the first 0 of 197 tokens .* any image are 1 (counted"),
        ("vit_tiny_patch16_224", {"num_prefix_tokens": 2}, "the first 2 of 197 tokens .* any image are 1 (counted"),
        ("cait_xxs24_224", {"num_prefix_tokens": 1}, "the first 1 of 196 tokens .* any image are none (counted"),
        ("vit_tiny_patch16_224", {"num_patches": 49}, "196 tokens are no prefix"),
    ],
)
def test_a_lying_adapter_is_caught(name, lies, reason, monkeypatch):
    lie(monkeypatch, **lies)
    found = of_timm(name, depth=2)
    assert found.status == "failed"
    for part in reason.split(" .* "):
        assert part in found.reason


class Forgetful(MyViT):
    """Gives every block the tokens that it began with."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        return [layer(x)[:, 0] for layer in self.layers][-1]


class Averse(MyViT):
    """Makes up the tokens that are missing."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for layer in self.layers:
            x = layer(x)
            x = torch.cat((x, x.new_zeros(len(x), 1 + PATCHES - x.shape[1], WIDTH)), dim=1)
        return x[:, 0]


class ByPlace(MyViT):
    """Has an output for every token."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for layer in self.layers:
            x = layer(x)
        return x.flatten(1)


class Shortened(MyViT):
    """Drops tokens itself."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        for layer in self.layers:
            x = layer(x)[:, :14]
        return x[:, 0]


class Pooled(MyViT):
    """Blocks get the tokens of neighbouring patches together."""

    def tokens(self, images: Tensor) -> Tensor:
        return super().tokens(images)[:, :9]


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_registered", {})
    monkeypatch.setattr(survey, "example_input", lambda model: Example(torch.zeros(1, 3, 32, 32).to(model.places)))
    for cls in (Forgetful, Averse, ByPlace, Shortened, Pooled, MyViT):
        register_host(cls)(lambda model: Host(blocks=model.layers, dim=WIDTH, num_prefix_tokens=1))


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Forgetful, "after block 2 the blocks should see (17, 17, 8, 8), but see (17, 17, 17, 17) and give 17"),
        (Averse, "after block 2 the blocks should see (17, 17, 8, 8), but see (17, 17, 17, 17) and give 17"),
        (ByPlace, "an output of shape (1, 544) becomes (1, 256) with 8 tokens"),
        (Shortened, "the number of tokens changes from block to block: (17, 14, 14, 14)"),
        (Pooled, "8 tokens follow the 1 of its prefix, but it cuts an image into 16 patches"),
    ],
)
def test_a_model_that_goes_its_own_way_fails(cls, reason):
    found = examine("own", cls.__name__, partial(on_meta, cls))
    assert (found.status, found.family) == ("failed", cls.__name__)
    assert found.reason.startswith("NotAsDescribedError: ")
    assert reason in found.reason


@pytest.mark.usefixtures("described")
def test_remove_must_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(census, "remove", lambda model: model)
    found = examine("own", "MyViT", partial(on_meta, MyViT))
    assert (found.status, found.reason) == (
        "failed",
        "NotAsDescribedError: remove leaves the model changed, first at layers.1",
    )


@pytest.mark.usefixtures("described")
def test_a_refusal_must_change_nothing(monkeypatch):
    def refuse(model: nn.Module, *args: Any, **kwargs: Any) -> None:
        model.layers[0].mark = True
        raise census.UnsupportedModelError(model, "no", "none")

    monkeypatch.setattr(census, "insert", refuse)
    found = examine("own", "MyViT", partial(on_meta, MyViT))
    assert found.reason == "NotAsDescribedError: a refused insert leaves the model changed, first at layers.0"


@pytest.mark.usefixtures("described")
def test_any_other_error_is_a_failure(monkeypatch):
    monkeypatch.setattr(census, "insert", lambda *args, **kwargs: copy.copy(None).no)
    found = examine("own", "MyViT", partial(on_meta, MyViT))
    assert (found.status, found.kind) == ("failed", None)
    assert found.reason == "AttributeError: 'NoneType' object has no attribute 'no'"
