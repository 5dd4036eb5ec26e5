"""Running a merged model many times on the same images: the blocks before the merge run once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.hosts import find_host
from patchmerger.inserted import InsertedMerger
from patchmerger.models.classifier import Classifier


class Shortcut:
    """A merged model from the block with a merger on.

    What arrives at that block is kept for every batch, so that queries can be tried out at the cost of the later
    blocks alone. The result is the model's own: nothing of it is computed in another way.

    Args:
        model: The merged model, in eval mode.
        merger: One of its mergers.
        batches: Normalised images, each (B, 3, S, S).

    Attributes:
        tokens: What arrives at the merger in each batch, (B, N, D), prefix tokens that pass by not included.
    """

    def __init__(self, model: Classifier, merger: InsertedMerger, batches: Sequence[Tensor]) -> None:
        self.model = model
        self.batches = batches
        self.tokens: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self._before = list(find_host(model.net).blocks[: merger.after - 1])
        self._outputs: list[Any] = []
        with torch.no_grad(), ExitStack() as hooks:
            if self._before:
                hooks.enter_context(self._before[-1].register_forward_hook(self._keep_output))
            hooks.enter_context(merger.module.register_forward_pre_hook(self._keep_tokens, with_kwargs=True))
            for images in batches:
                model(images)

    def _keep_output(self, _: nn.Module, __: Any, output: Any) -> None:
        self._outputs.append(output)

    def _keep_tokens(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens.append(args[0])
        self.masks.append(kwargs.get("mask"))

    def __len__(self) -> int:
        return len(self.batches)

    def run(self, batch: int) -> tuple[Tensor, Tensor]:
        """Scores (B, C) and pooled features (B, D) of a batch, by its number."""
        if not self._before:
            return self.model.with_features(self.batches[batch])
        with _instead(self._before, self._outputs[batch]):
            return self.model.with_features(self.batches[batch])


@contextmanager
def _instead(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Let ``blocks`` give ``output`` without running."""
    try:
        for block in blocks:
            vars(block)["forward"] = lambda *_, **__: output
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
