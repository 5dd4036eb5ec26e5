"""Images of any size: which models take them, and the sizes that an exported file is compared on beside its own."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from unittest import mock

import torch
from timm.layers.format import Format
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchmerger.hosts.example_inputs import image_size_of, resized
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.classifier import Classifier

_INTERPOLATES = "interpolate_pos_encoding"
"""What models of transformers are called with for images of another size than their own."""


@dataclass(frozen=True)
class SizedModel:
    """A model, and how it takes images of one size: called with ``arguments`` beside them."""

    net: nn.Module
    image_size: tuple[int, int]
    arguments: dict[str, Any]


def in_size(model: nn.Module, image_size: int | None) -> SizedModel:
    """The model for square images of another size: a copy that says so, or itself where it is only called otherwise.

    Models of transformers interpolate their position table when they are called, if they can.

    Raises:
        ValueError: It takes no images of that size.
    """
    own = image_size_of(model)
    if image_size is None or own == (image_size, image_size):
        return SizedModel(model, own, {})
    if not host_class(model).__module__.startswith("transformers."):
        return SizedModel(resized(model, image_size), (image_size, image_size), {})
    found = SizedModel(model, (image_size, image_size), size_arguments(model))
    step = size_step(model, f"image_size ({image_size})")
    if image_size % step:
        fitting = max(1, round(image_size / step)) * step
        raise ValueError(f"image_size ({image_size}) does not divide by the patch size ({step}): take {fitting}, say")
    if (reason := _refusal(model, found.image_size, found.arguments)) is not None:
        raise ValueError(
            f"image_size ({image_size}) does not fit {host_class(model).__name__}, which takes images of {own[0]} × "
            f"{own[1]} pixels alone ({reason}): leave it out"
        )
    return found


def take_any_size(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy that takes images of any size, and what their sides must be multiples of.

    timm's ViTs resize their position table as with ``dynamic_img_size``; models of transformers, and others that take
    such images by themselves, stay as they are.

    Raises:
        ValueError: The model takes images of one size alone, or a program of it would.
    """
    for reducer in (block.merger for block in model.modules() if is_merging(block)):
        if not getattr(reducer, "traces_any_number", True):
            raise ValueError(
                f"dynamic_size (true): {type(reducer).__name__} takes more steps where more tokens arrive, and a "
                "program has the steps of one size: leave it out, and export a file for each image_size"
            )
    clone: Any = copy.deepcopy(model)
    if isinstance(clone, VisionTransformer) and type(clone.patch_embed) is PatchEmbed and not clone.dynamic_img_size:
        vit, embedding = cast(Any, clone), cast(Any, clone.patch_embed)  # as timm's own constructor does
        vit.dynamic_img_size = True
        embedding.strict_img_size, embedding.flatten, embedding.output_fmt = False, False, Format.NHWC
    step = size_step(clone, "dynamic_size (true)")
    for size in other_sizes(image_size_of(model), step):
        if (reason := _refusal(clone, size, size_arguments(clone))) is not None:
            own = " × ".join(map(str, image_size_of(model)))
            raise ValueError(
                f"dynamic_size (true): {host_class(model).__name__} takes images of {own} pixels alone ({reason}): "
                "leave it out, and export a file for each image_size"
            )
    return clone, step


def _refusal(model: nn.Module, size: tuple[int, int], arguments: dict[str, Any]) -> str | None:
    """Why a model takes no images of a size; ``None`` where it does."""
    net = Classifier(model)
    net.arguments = arguments
    like = next(p for p in model.parameters() if p.is_floating_point())
    try:
        with eval_mode(model), torch.no_grad():
            net(torch.zeros(1, net.channels, *size).to(like))
    except (ValueError, RuntimeError, AssertionError, IndexError, TypeError) as error:
        lines = (line.strip() for line in str(error).splitlines())
        return next((line for line in lines if line), type(error).__name__)[:160]
    return None


def size_arguments(model: nn.Module) -> dict[str, Any]:
    """What a model must be called with beside images that have another size than its own."""
    return {_INTERPOLATES: True} if _INTERPOLATES in inspect.signature(host_class(model).forward).parameters else {}


@contextmanager
def open_sizes(model: nn.Module) -> Iterator[None]:
    """Within it, ``torch.export`` sees no fixed size in models of transformers.

    These resize their position table at every size when ``torch.jit`` traces them, which ``torch.export`` is not known
    to do, and make whole numbers of symbolic sizes, which fixes them.
    """
    known = {host_class(module).__module__ for module in model.modules()}
    rounding = [
        m for name in known if name.startswith("transformers.") and hasattr(m := sys.modules[name], "torch_int")
    ]
    with ExitStack() as stack:
        if any(name.startswith("transformers.") for name in known):
            stack.enter_context(mock.patch.object(torch.jit, "is_tracing", return_value=True))
        for module in rounding:
            stack.enter_context(mock.patch.object(module, "torch_int", _whole))
        yield


def _whole(x: Any) -> Any:
    return x if isinstance(x, torch.SymInt) else int(x)


def size_step(model: nn.Module, option: str) -> int:
    """Height and width of images are multiples of this: the side of a patch. ``option`` is what asks for it.

    Raises:
        ValueError: It is not known, or patches are not square.
    """
    config = getattr(model, "config", None)
    embedding = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    for owner in (embedding, getattr(config, "vision_config", None), config, model):
        if (found := getattr(owner, "patch_size", None)) is not None:
            height, width = (found, found) if isinstance(found, int) else found
            if height == width:
                return int(cast(int, height))
    raise ValueError(
        f"{option}: {host_class(model).__name__} does not say the side of its square patches, of which the "
        "sides of images must be multiples: leave it out"
    )


def other_sizes(own: tuple[int, int], step: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two further sizes (height, width) to compare on: one half as large again, and one that is not square."""
    rows, columns = (side // step for side in own)
    return (math.ceil(1.5 * rows) * step, math.ceil(1.5 * columns) * step), ((rows + 1) * step, (columns + 3) * step)
