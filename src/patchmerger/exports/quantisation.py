"""int8: which layers are quantised, which suffer most of it, and which go back to floating point until it agrees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.exports.tracing import ImageClassifier

_STEPS = (0.0, 0.1, 0.25, 0.5)
"""The shares of all layers that are left in floating point, one after the other, until the file agrees."""

_RANKING_IMAGES = 16


def float_layer_steps(model: ImageClassifier, images: Tensor) -> Iterator[tuple[str, ...]]:
    """The layers to leave in floating point, first none, then more and more, those that suffer most first.

    The model is in float32, and the errors of int8 are measured on images as it takes them.
    """
    yield ()
    errors = quantisation_errors(model, images[:_RANKING_IMAGES])
    worst = sorted(errors, key=lambda name: -errors[name])
    for share in _STEPS[1:]:
        chosen = set(worst[: max(1, round(share * len(worst)))])
        yield tuple(name for name in errors if name in chosen)


def quantisation_errors(model: ImageClassifier, images: Tensor) -> dict[str, float]:
    """Of each linear layer and convolution outside the mergers, how much of its output int8 alone would change.

    The squared error of its output with input and weights rounded, over the square of its output: ``‖Q(W) Q(x) − W x‖²
    / ‖W x‖²``, with one scale for the input, one for each row of the weights, and seven bits for these.
    """
    errors: dict[str, float] = {}

    def measure(name: str, layer: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
        weight, bias = _rounded_rows(layer.weight), layer.bias
        x = _rounded(given[0])
        changed = F.linear(x, weight, bias) if isinstance(layer, nn.Linear) else layer._conv_forward(x, weight, bias)
        errors[name] = float((changed - output).square().sum() / output.square().sum().clamp(min=1e-30))

    handles = [
        layer.register_forward_hook(partial(measure, name))
        for name, layer in model.net.net.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and not in_merger(name)
    ]
    try:
        with torch.inference_mode():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return errors


def in_merger(module: str) -> bool:
    """Whether a module is a merger, or a part of one: its few scores and their softmax stay in floating point."""
    return "merger" in module.split(".")


def kept_nodes(nodes: dict[str, list[str]], float_layers: Iterable[str]) -> list[str]:
    """The nodes that stay in floating point: those of mergers, and of these layers."""
    kept = set(float_layers)
    return [node for module, found in nodes.items() if in_merger(module) or module in kept for node in found]


def _rounded(x: Tensor) -> Tensor:
    """To 256 steps between the least and the largest number."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return ((x - low) / scale).round() * scale + low


def _rounded_rows(weight: Tensor) -> Tensor:
    """To whole numbers from −64 to 64 times a scale for each row."""
    scale = (weight.flatten(1).abs().amax(dim=1) / 64).clamp(min=1e-12).view(-1, *[1] * (weight.ndim - 1))
    return (weight / scale).round() * scale
