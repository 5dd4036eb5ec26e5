"""Tiny models of transformers with fixed weights: its real classes, made narrow and shallow."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from patchmerger.insertion import insert

DEPTH, SIZE, NUM_PATCHES = 4, 32, 16
_WIDTH = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "intermediate_size": 64}
_VISION = {**_WIDTH, "image_size": SIZE, "patch_size": 8}
_TEXT = {**_WIDTH, "num_hidden_layers": 1, "vocab_size": 50, "max_position_embeddings": 8}
_TEXT |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_LABELS = {"num_labels": 5}
_BLOCK_BIAS = {"use_relative_position_bias": True}
_SHARED_BIAS = {"use_shared_relative_position_bias": True}
_VIDEO = {"num_frames": 4, "tubelet_size": 2}
_SPECTROGRAM = {"max_length": 32, "num_mel_bins": 32, "frequency_stride": 8, "time_stride": 8}
_REGISTERS = {"num_register_tokens": 3}


@dataclass(frozen=True)
class Tiny:
    """How to make a tiny model.

    Attributes:
        config: Settings of its configuration.
        prefix: Its tokens before the patches.
        size: The side of its images.
        patches: Its patch tokens.
        joint: The settings are those of the vision model in a configuration that has one of text as well.
        text: Settings of that one.
    """

    config: dict[str, Any]
    prefix: int = 1
    patches: int = NUM_PATCHES
    size: int = SIZE
    joint: bool = False
    text: dict[str, Any] = field(default_factory=dict)


# What to call it → how to make it. The class is the first word.
TINY: dict[str, Tiny] = {
    "ViTModel": Tiny(_VISION),
    "ViTForImageClassification": Tiny(_VISION | _LABELS),
    "DeiTModel": Tiny(_VISION, prefix=2),
    "DeiTForImageClassification": Tiny(_VISION | _LABELS, prefix=2),
    "DeiTForImageClassificationWithTeacher": Tiny(_VISION | _LABELS, prefix=2),
    "Dinov2Model": Tiny(_VISION),
    "Dinov2ForImageClassification": Tiny(_VISION | _LABELS),
    "Dinov2WithRegistersModel": Tiny(_VISION | _REGISTERS, prefix=4),
    "Dinov2WithRegistersForImageClassification": Tiny(_VISION | _REGISTERS | _LABELS, prefix=4),
    "DINOv3ViTModel": Tiny(_VISION | _REGISTERS | {"pos_embed_rescale": 1.2}, prefix=4, size=40, patches=25),
    "Sapiens2Model": Tiny(_VISION | _REGISTERS, prefix=4, size=40, patches=25),
    "BeitModel": Tiny(_VISION | {"use_absolute_position_embeddings": True}),
    "BeitModel with bias": Tiny(_VISION | _BLOCK_BIAS),
    "BeitForImageClassification with bias": Tiny(_VISION | _BLOCK_BIAS | _LABELS),
    "Data2VecVisionModel": Tiny(_VISION | {"use_absolute_position_embeddings": True}),
    "Data2VecVisionModel with bias": Tiny(_VISION | _BLOCK_BIAS),
    "Data2VecVisionForImageClassification with both biases": Tiny(_VISION | _BLOCK_BIAS | _SHARED_BIAS | _LABELS),
    "CLIPVisionModel": Tiny(_VISION),
    "CLIPVisionModelWithProjection": Tiny(_VISION | {"projection_dim": 16}),
    "CLIPForImageClassification": Tiny(_VISION, joint=True),
    "CLIPModel": Tiny(_VISION, joint=True),
    "MetaClip2VisionModel": Tiny(_VISION),
    "MetaClip2VisionModelWithProjection": Tiny(_VISION | {"projection_dim": 16}),
    "MetaClip2ForImageClassification": Tiny(_VISION, joint=True),
    "MetaClip2Model": Tiny(_VISION, joint=True),
    "SiglipVisionModel": Tiny(_VISION, prefix=0),
    "SiglipForImageClassification": Tiny(_VISION, prefix=0, joint=True),
    "SiglipModel": Tiny(_VISION, prefix=0, joint=True, text={"projection_size": 32}),
    "Siglip2VisionModel": Tiny(_WIDTH | {"num_patches": 16, "patch_size": 8}, prefix=0),
    "Siglip2ForImageClassification": Tiny(_WIDTH | {"num_patches": 16, "patch_size": 8}, prefix=0, joint=True),
    "Siglip2Model": Tiny(
        _WIDTH | {"num_patches": 16, "patch_size": 8}, prefix=0, joint=True, text={"projection_size": 32}
    ),
    "Aimv2VisionModel": Tiny(_VISION, prefix=0),
    "Aimv2VisionModel of any size": Tiny(_VISION | {"is_native": True}, prefix=0),
    "Aimv2Model": Tiny(_VISION, prefix=0, joint=True),
    "IJepaModel": Tiny(_VISION, prefix=0),
    "IJepaForImageClassification": Tiny(_VISION | _LABELS, prefix=0),
    "ViTMSNModel": Tiny(_VISION),
    "ViTMSNForImageClassification": Tiny(_VISION | _LABELS),
    "ASTModel": Tiny(_WIDTH | _SPECTROGRAM | {"patch_size": 8}, prefix=2),
    "ASTForAudioClassification": Tiny(_WIDTH | _SPECTROGRAM | {"patch_size": 8} | _LABELS, prefix=2),
    "AltCLIPModel": Tiny(_VISION, joint=True, text={"project_dim": 32}),
    "AltCLIPVisionModel": Tiny(_VISION),
    "ChineseCLIPVisionModel": Tiny(_VISION),
    "ChineseCLIPModel": Tiny(_VISION, joint=True),
    "BlipVisionModel": Tiny(_VISION),
    "BlipModel": Tiny(_VISION, joint=True, text={"projection_dim": 16}),
    "Blip2VisionModel": Tiny(_VISION),
    "InstructBlipVisionModel": Tiny(_VISION),
    "FlavaImageModel": Tiny(_VISION),
    "GitVisionModel": Tiny(_VISION),
    "InternVLVisionModel": Tiny(_VISION | {"use_absolute_position_embeddings": True}),
    "JanusVisionModel": Tiny(_VISION, prefix=0),
    "PixioModel": Tiny(_VISION | {"n_cls_tokens": 3}, prefix=3),
    "RadioModel": Tiny(_VISION, prefix=10),
    "Tipsv2VisionModel": Tiny(_VISION | _REGISTERS, prefix=4),
    "Tipsv2Model": Tiny(_VISION | _REGISTERS, prefix=4, joint=True),
    "ViTMAEModel": Tiny(_VISION | {"mask_ratio": 0.0}),
    "VideoMAEModel": Tiny(_VISION | _VIDEO, prefix=0, patches=32),
    "VideoMAEForVideoClassification": Tiny(_VISION | _VIDEO | _LABELS, prefix=0, patches=32),
    "VivitModel": Tiny(_VISION | {"num_frames": 4, "tubelet_size": [2, 8, 8]}, patches=32),
    "VivitForVideoClassification": Tiny(_VISION | {"num_frames": 4, "tubelet_size": [2, 8, 8]} | _LABELS, patches=32),
}

# Older versions have fewer classes.
FAMILIES = [name for name in TINY if hasattr(transformers, name.split()[0])]


def make_model(name: str, **settings: Any) -> Any:
    """The model in eval mode; fixed weights, none of them near zero, so that every part of it counts."""
    model = copy.deepcopy(_made(name)) if not settings else _make(name, settings)
    return model.eval()


@functools.cache
def _made(name: str) -> nn.Module:
    return _make(name, {})


def _make(name: str, settings: dict[str, Any]) -> nn.Module:
    tiny, cls = TINY[name], getattr(transformers, name.split()[0])
    config = tiny.config | settings
    if tiny.joint:
        config = {"vision_config": config, "text_config": _TEXT | tiny.text, "projection_dim": 16, **_LABELS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def make_inputs(name: str, seed: int = 1) -> dict[str, Tensor]:
    """Two fixed random images, videos or spectrograms, and two texts where the model reads them."""
    generator = torch.Generator().manual_seed(seed)
    tiny, cls = TINY[name], name.split()[0]
    images = torch.randn(2, 3, tiny.size, tiny.size, generator=generator)
    inputs = {"pixel_values": images}
    if cls.startswith("AST"):
        inputs = {"input_values": images[:, 0]}
    elif cls.startswith("Vi") and tiny.patches > NUM_PATCHES:
        inputs = {"pixel_values": torch.randn(2, 4, 3, SIZE, SIZE, generator=generator)}
    elif cls.startswith("Siglip2"):
        patches = torch.randn(2, NUM_PATCHES, 3 * 8 * 8, generator=generator)
        inputs = {"pixel_values": patches, "pixel_attention_mask": torch.ones(2, NUM_PATCHES, dtype=torch.int64)}
        inputs["spatial_shapes"] = torch.full((2, 2), 4)
    elif cls == "ViTMAEModel":  # the noise that shuffles its patches: in order
        inputs["noise"] = torch.arange(NUM_PATCHES).expand(2, -1).float()
    if tiny.joint and not cls.endswith("ForImageClassification"):
        inputs["input_ids"] = torch.tensor([[0, 5, 7, 2], [0, 9, 2, 1]])
        inputs["attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    return inputs


def padded_inputs() -> dict[str, Tensor]:
    """An image of 4 × 4 patches and one of 3 × 4, with padding that is not zero."""
    inputs = make_inputs("Siglip2VisionModel")
    inputs["pixel_attention_mask"][1, 12:] = 0
    inputs["spatial_shapes"][1, 0] = 3
    return inputs


def answers(outputs: Any) -> dict[str, Tensor]:
    """All tensors that a model gives, those of a model inside it too."""
    found: dict[str, Tensor] = {}
    for name, value in outputs.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif hasattr(value, "items"):
            found |= {f"{name}.{inner}": tensor for inner, tensor in answers(value).items()}
    return found


def positions_of(name: str) -> str | None:
    return "drop" if "bias" in name else None


def insert_into(name: str, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return insert(model, *args, positions=positions_of(name), **kwargs)


def run(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return answers(model(**inputs))


def assert_equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], value) for key, value in expected.items())


def gradients(model: nn.Module, inputs: dict[str, Tensor], times: int = 1) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = [answers(model(**inputs)) for _ in range(times)]
    sum(x.square().sum() for found in outputs for x in found.values() if x.requires_grad).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
