"""Images of any size: which models take them, and the sizes that an exported file is compared on beside its own."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from timm.layers.format import Format
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.classifier import Classifier

_INTERPOLATES = "interpolate_pos_encoding"
"""What models of transformers are called with for images of another size than their own."""


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
    step = size_step(clone)
    net = Classifier(clone)
    net.arguments = size_arguments(clone)
    like = next(p for p in clone.parameters() if p.is_floating_point())
    for height, width in other_sizes(image_size_of(model), step):
        try:
            with eval_mode(clone), torch.no_grad():
                net(torch.zeros(1, net.channels, height, width).to(like))
        except (ValueError, RuntimeError, AssertionError, IndexError, TypeError) as error:
            own = " × ".join(map(str, image_size_of(model)))
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(
                f"dynamic_size (true): {host_class(model).__name__} takes images of {own} pixels alone "
                f"({reason[:160]}): leave it out, and export a file for each image_size"
            ) from error
    return clone, step


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


def size_step(model: nn.Module) -> int:
    """Height and width of images are multiples of this: the side of a patch.

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
        f"dynamic_size (true): {host_class(model).__name__} does not say the side of its square patches, of which the "
        "sides of images must be multiples: leave it out"
    )


def other_sizes(own: tuple[int, int], step: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two further sizes (height, width) to compare on: one half as large again, and one that is not square."""
    rows, columns = (side // step for side in own)
    return (math.ceil(1.5 * rows) * step, math.ceil(1.5 * columns) * step), ((rows + 1) * step, (columns + 3) * step)
