"""Which of timm's models can take a merger, and the function that describes each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deepseek_vit import DeepseekVitClassifier, DeepseekVitEncoder
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.gemma4_vit import Gemma4VitClassifier, Gemma4VitEncoder
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from patchmerger.hosts.host import Host
from patchmerger.hosts.timm.gemma4 import describe_gemma4
from patchmerger.hosts.timm.naflex import describe_naflex
from patchmerger.hosts.timm.qwen3_deepseek import describe_grid_encoder
from patchmerger.hosts.timm.relative_bias import describe_beit, describe_relpos
from patchmerger.hosts.timm.rotary import describe_eva
from patchmerger.hosts.timm.vision_transformer import describe_cait, describe_vision_transformer
from patchmerger.mechanism.subclassing import host_class

SUPPORTED: dict[type[nn.Module], Callable[[Any], Host]] = {
    VisionTransformer: describe_vision_transformer,
    VisionTransformerDistilled: describe_vision_transformer,
    Eva: describe_eva,
    Beit: describe_beit,
    VisionTransformerRelPos: describe_relpos,
    Cait: describe_cait,
    NaFlexVit: describe_naflex,
    Qwen3VitClassifier: describe_grid_encoder,
    Qwen3VitEncoder: describe_grid_encoder,
    DeepseekVitClassifier: describe_grid_encoder,
    DeepseekVitEncoder: describe_grid_encoder,
    Gemma4VitClassifier: describe_gemma4,
    Gemma4VitEncoder: describe_gemma4,
}


def describe_timm(model: nn.Module) -> Host | None:
    """Describe one of timm's models; ``None`` for a class that is not known."""
    # The class itself, not a subclass: what an unknown subclass does with its tokens is unknown.
    describe = SUPPORTED.get(host_class(model))
    if describe is None:
        return None
    host = describe(model)
    return replace(host, has_class_token=host.num_prefix_tokens > 0 and getattr(model, "cls_token", None) is not None)
