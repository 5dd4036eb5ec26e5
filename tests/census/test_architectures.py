"""The architectures that the libraries name."""

import importlib.util

import pytest
import timm
import torch
from torch import nn

from patchmerger.census import survey as module
from patchmerger.census.survey import architectures


def names(library: str, filter: str = "*") -> list[str]:
    return [one.name for one in architectures(library, filter)]


def test_all_of_timm():
    assert names("timm") == timm.list_models(exclude_filters="patchmerger_*")
    assert names("timm", "VIT_base_patch16_22?") == ["vit_base_patch16_224"]
    (one,) = architectures("timm", "test_vit")
    model = one.build()
    assert type(model).__name__ == "VisionTransformer"
    assert all(parameter.is_meta for parameter in model.parameters())


def test_classifiers_of_torchvision():
    listed = names("torchvision")
    assert {"vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14", "resnet18"} < set(listed)
    assert not any("rcnn" in name or "deeplab" in name for name in listed)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_encoders_and_classifiers_of_transformers():
    from transformers.models.auto import modeling_auto as auto

    listed = set(names("transformers"))
    for mapping in (auto.MODEL_FOR_IMAGE_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES):
        for mapped in mapping.values():
            assert {mapped} <= listed or set(mapped) <= listed
    assert {"CLIPVisionModel", "Siglip2VisionModel", "ASTForAudioClassification"} < listed
    assert not any(name.startswith("Auto") for name in listed)
    (one,) = architectures("transformers", "vitmaemodel")
    model = one.build()
    assert model.config.mask_ratio == 0.0
    assert all(parameter.is_meta for parameter in model.parameters())


def build(make) -> nn.Module:
    return module._on_meta(make)


def test_what_the_meta_device_does_not_hold_is_built_on_the_cpu():
    def make() -> nn.Module:
        layer = nn.Linear(2, 2)
        layer.std = torch.ones(()).item()
        return layer

    assert build(make).weight.device.type == "cpu"


def test_an_error_of_the_library_stays():
    def make() -> nn.Module:
        raise RuntimeError("not here")

    with pytest.raises(RuntimeError, match="not here"):
        build(make)
