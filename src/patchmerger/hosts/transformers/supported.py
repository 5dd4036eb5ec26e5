"""transformers' plain Vision Transformers: which classes they are, their prefix tokens, what they give their blocks.

Nothing here imports transformers, which need not be installed: a model is known by the name of its class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from torch import nn

from patchmerger.hosts.host import Host, RelativeBias, UnsupportedModelError, known_blocks
from patchmerger.hosts.transformers.subclasses import (
    MergedRotaryTransformer,
    MergedSiglip2Classifier,
    MergedSiglip2Tower,
    MergedTransformer,
    NoBias,
    UnbiasedAttention,
    UnmaskedHead,
    list_of_blocks,
)
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope
from patchmerger.mechanism.subclassing import argument_names, host_class

# Where a model keeps its Transformer.
_TRANSFORMER = "vision_model"


@dataclass(frozen=True)
class _Family:
    """The classes around one Transformer.

    Attributes:
        transformers: The classes that have its embeddings and blocks, in all versions of transformers.
        prefix: Tokens before the patches, as a number or as the configuration has it.
        around: The classes that hold one of those, to classify or to compare with text.
        any_size: Whether it takes images of every size, so that the number of patches is open.
        grid: As in :class:`Host`, or a function of the Transformer.
        inputs: What its blocks are called with that counts on N tokens.
        others: What else a :class:`Host` should say, for the whole model and its Transformer.
    """

    transformers: str
    prefix: int | Callable[[Any], int]
    around: str = ""
    any_size: bool = False
    grid: Literal["varies"] | Callable[[Any], tuple[int, int]] | None = "varies"
    inputs: BlockInputs = field(default=BlockInputs(exported="attention_mask"))
    others: Callable[[Any, Any], dict[str, Any]] | None = None


def describe_transformers(model: nn.Module) -> Host | None:
    """Describe one of transformers' models; ``None`` where nothing is known of its class."""
    family = _BY_NAME.get(_name(model))
    if family is None:
        return None
    transformer = _transformer(model, family)
    prefix = family.prefix if isinstance(family.prefix, int) else family.prefix(transformer.config)
    first = f"{host_class(model).__name__} tells its first {prefix} tokens from patches by their place"
    host = Host(
        blocks=_blocks(model, transformer),
        dim=transformer.config.hidden_size,
        num_prefix_tokens=prefix,
        num_patches=None if family.any_size else _num_patches(transformer.embeddings, prefix),
        grid=family.grid(transformer) if callable(family.grid) else family.grid,
        inputs=family.inputs,
        prefix_is_needed=first if prefix else None,
        subclasses=[(transformer, MergedTransformer)],
    )
    return host if family.others is None else replace(host, **family.others(model, transformer))


def _name(model: nn.Module) -> str:
    """The name of the class that transformers itself has under this name; empty for a subclass or a copy of it."""
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    cls = host_class(model)
    return cls.__name__ if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls else ""


def _transformer(model: Any, family: _Family) -> Any:
    """The part of ``model`` that has both embeddings and blocks."""
    held = [getattr(model, name, None) for name in (_TRANSFORMER, getattr(model, "base_model_prefix", ""))]
    parts = [part for part in (model, *held) if hasattr(part, "embeddings") and list_of_blocks(part) is not None]
    if parts and _name(parts[0]) in family.transformers.split():
        return parts[0]
    raise UnsupportedModelError(
        model,
        f"no {' or '.join(family.transformers.split())} with embeddings and blocks was found in it",
        "it was changed, or comes from a version of transformers that is not known here",
        "changed",
    )


def _blocks(model: nn.Module, transformer: nn.Module) -> list[nn.Module]:
    """The blocks, refused where another tool wrapped or exchanged them."""
    module = sys.modules[host_class(transformer).__module__]
    own = [cls for cls in vars(module).values() if getattr(cls, "__module__", "") == module.__name__]
    known = tuple(cls for cls in own if cls.__name__.endswith("Layer"))
    return known_blocks(model, list_of_blocks(transformer), known, "transformers", nn.ModuleList)


def _num_patches(embeddings: nn.Module, prefix: int) -> int | None:
    """As many as there are positions for; ``None`` where these are computed for any size."""
    table = getattr(embeddings, "position_embeddings", getattr(embeddings, "position_embedding", None))
    if table is None:
        return None
    positions = table.num_embeddings if isinstance(table, nn.Embedding) else table.shape[-2]
    return cast(int, positions) - prefix


def _with_registers(config: Any) -> int:
    return 1 + cast(int, config.num_register_tokens)


def _rotary(model: Any, transformer: Any) -> dict[str, Any]:  # noqa: ARG001
    return {"subclasses": [(transformer, MergedRotaryTransformer)]}


def _relative_bias(model: Any, transformer: Any) -> dict[str, Any]:
    """BEiT and Data2Vec may have a relative position bias in each block, one that all blocks share, or both."""
    block = list_of_blocks(transformer)[0]  # whatever is merged, the first block keeps its bias
    shared = transformer.config.use_shared_relative_position_bias
    if shared and "relative_position_bias" not in argument_names(block):
        raise UnsupportedModelError(
            model,
            "its blocks get the relative position bias that they share as an attention mask, where it cannot be told "
            "from the mask of a user",
            "use_shared_relative_position_bias=False in its configuration makes one without",
            "relative bias",
        )
    biases = []
    if getattr(block, "relative_position_bias", None) is not None:
        biases.append(RelativeBias("relative_position_bias", NoBias))
    elif hasattr(block.attention, "attention") and block.attention.attention.has_relative_position_bias:
        biases.append(RelativeBias("attention.attention", UnbiasedAttention))
    return {
        "inputs": BlockInputs(bias="relative_position_bias" if shared else None, exported="attention_mask"),
        "biases": tuple(biases),
    }


def _padding(model: Any, transformer: Any) -> dict[str, Any]:
    """SigLIP 2 takes images of several sizes in one batch, padded; what comes after the merge has no padding."""
    subclasses: list[Any] = [(transformer, MergedSiglip2Tower)]
    if getattr(transformer, "head", None) is not None:
        subclasses.append((transformer.head, UnmaskedHead))
    if host_class(model).__name__.endswith("ForImageClassification"):
        subclasses.append((model, MergedSiglip2Classifier))
    return {"subclasses": subclasses}


def _spectrogram(transformer: Any) -> tuple[int, int]:
    """Rows of frequencies and columns of times: patches of a spectrogram are a grid too, and may overlap."""
    frequencies, times = transformer.embeddings.get_shape(transformer.config)
    return int(frequencies), int(times)


_ROPE = BlockInputs(rope=Rope(arguments=("position_embeddings",), layout="(cos, sin)"))

# The Transformer itself, the tokens before its patches, the models around it.
_FAMILIES = (
    _Family("ASTModel", 2, "ASTForAudioClassification", grid=_spectrogram),
    _Family("Aimv2VisionModel", 0, "Aimv2Model"),
    _Family("AltCLIPVisionModel AltCLIPVisionTransformer", 1, "AltCLIPModel"),
    _Family("BeitModel", 1, "BeitForImageClassification", any_size=True, others=_relative_bias),
    _Family("Blip2VisionModel", 1),
    _Family("BlipVisionModel", 1, "BlipModel"),
    _Family(
        "CLIPVisionModel CLIPVisionTransformer", 1, "CLIPForImageClassification CLIPModel CLIPVisionModelWithProjection"
    ),
    _Family("ChineseCLIPVisionModel ChineseCLIPVisionTransformer", 1, "ChineseCLIPModel"),
    _Family("DINOv3ViTModel", _with_registers, any_size=True, inputs=_ROPE, others=_rotary),
    _Family("Data2VecVisionModel", 1, "Data2VecVisionForImageClassification", any_size=True, others=_relative_bias),
    _Family("DeiTModel", 2, "DeiTForImageClassification DeiTForImageClassificationWithTeacher"),
    _Family("Dinov2Model", 1, "Dinov2ForImageClassification", any_size=True),
    _Family("Dinov2WithRegistersModel", _with_registers, "Dinov2WithRegistersForImageClassification", any_size=True),
    _Family("FlavaImageModel", 1),
    _Family("GitVisionModel GitVisionTransformer", 1),
    _Family("IJepaModel", 0, "IJepaForImageClassification"),
    _Family("InstructBlipVisionModel", 1),
    _Family("InternVLVisionModel", 1, any_size=True),
    _Family("JanusVisionModel", 0),
    _Family(
        "MetaClip2VisionModel MetaClip2VisionTransformer",
        1,
        "MetaClip2ForImageClassification MetaClip2Model MetaClip2VisionModelWithProjection",
    ),
    _Family("PixioModel", lambda config: config.n_cls_tokens, any_size=True),
    _Family("RadioModel", lambda config: config.num_summary_tokens, any_size=True),
    _Family("Sapiens2Model", _with_registers, any_size=True, inputs=_ROPE, others=_rotary),
    _Family(
        "Siglip2VisionModel Siglip2VisionTransformer",
        0,
        "Siglip2ForImageClassification Siglip2Model",
        any_size=True,
        inputs=BlockInputs(padding="attention_mask"),
        others=_padding,
    ),
    _Family("SiglipVisionModel SiglipVisionTransformer", 0, "SiglipForImageClassification SiglipModel"),
    _Family("Tipsv2VisionModel", _with_registers, "Tipsv2Model", any_size=True),
    _Family("ViTMAEModel", 1, any_size=True, grid=None),  # it leaves out as many patches as mask_ratio says
    _Family("ViTMSNModel", 1, "ViTMSNForImageClassification"),
    _Family("ViTModel", 1, "ViTForImageClassification"),
    _Family("VideoMAEModel", 0, "VideoMAEForVideoClassification", grid=None),
    _Family("VivitModel", 1, "VivitForVideoClassification", grid=None),
)
_BY_NAME = {name: family for family in _FAMILIES for name in f"{family.transformers} {family.around}".split()}
