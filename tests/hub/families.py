"""Tiny models of transformers' families, without and with a merger."""

import transformers
from torch import nn

from hub.helpers import make_transformers
from patchmerger.insertion import insert

SPECTROGRAMS = {"max_length": 64, "num_mel_bins": 32, "image_size": None}
# class → (arguments of its config, arguments of insert)
FAMILIES = {
    "ViTForImageClassification": ({}, {}),
    "DeiTForImageClassificationWithTeacher": ({}, {}),
    "Dinov2WithRegistersForImageClassification": ({}, {}),
    "DINOv3ViTModel": ({"num_register_tokens": 2, "image_size": 48}, {}),
    "BeitForImageClassification": ({"use_relative_position_bias": True}, {"positions": "drop"}),
    "CLIPVisionModelWithProjection": ({}, {}),
    "SiglipVisionModel": ({}, {}),
    "Siglip2VisionModel": ({"num_patches": 16, "image_size": None}, {}),
    "Aimv2VisionModel": ({}, {}),
    "IJepaModel": ({}, {}),
    "ASTForAudioClassification": (SPECTROGRAMS, {}),
}


def make(name: str = "ViTForImageClassification", **kwargs: object) -> transformers.PreTrainedModel:
    model = make_transformers(name, **FAMILIES[name][0], **kwargs)
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def make_merged(name: str = "ViTForImageClassification", *args: object, **kwargs: object) -> nn.Module:
    return insert(make(name), *(args or (4,)), **FAMILIES[name][1], **kwargs)
