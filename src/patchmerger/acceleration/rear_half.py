"""A classifier from one of its blocks on, run on tokens that what comes before it computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchmerger.hosts import block_names, find_host
from patchmerger.mechanism.blocks import is_merging, works_inside
from patchmerger.mechanism.modes import eval_mode, learning_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.models.classifier import Classifier

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class FrontOutput:
    """What one pass over a batch of images gives.

    Tokens (B, P + N, D) as they leave the front half, before any merge; scores (B, C); and the pooled features (B, F)
    that the last layer makes the scores of.
    """

    tokens: Tensor
    scores: Tensor
    features: Tensor


class RearHalf:
    """Runs a classifier from a block on.

    The host's own forward pass runs, in which the blocks up to ``after`` give the kept tokens in place of computing
    them, so that nothing is computed in another way than in the whole model. What runs before the blocks, the
    embedding, is given a blank image of the same size: of it only the number of tokens and their positions are used.

    ``after`` is the last block that does not run, counted from 1; where it merges, its merger runs. 0 lets all blocks
    run, on the tokens that enter the first one. What :meth:`run` is given may be any classifier like this one.

    Raises:
        ValueError: There is no such block, or none after it.
    """

    def __init__(self, classifier: Classifier, after: int) -> None:
        host = find_host(classifier.net)
        if not 0 <= after < len(host.blocks):
            raise ValueError(
                f"after ({after}) must be a block from 1 to {len(host.blocks) - 1}, or 0 for the embedding: at least "
                f"one block must follow the kept tokens, and the model has {len(host.blocks)}"
            )
        self.after = after
        self.dim = host.dim
        self._names = block_names(classifier.net, host)
        self._rest: tuple[Any, ...] | None = None
        self._blank: Tensor | None = None

    def front(self, classifier: Classifier, images: Tensor) -> FrontOutput:
        """One pass of the whole classifier over normalised images (B, 3, S, S)."""
        seen: list[Any] = []
        with self._captured(classifier, seen.append):
            scores, features = classifier.with_features(images)
        tokens, self._rest = (seen[0][0], seen[0][1:]) if isinstance(seen[0], tuple) else (seen[0], None)
        if any(isinstance(part, Tensor) for part in self._rest or ()):
            raise ValueError(
                f"recovery.scope ('rear'): the blocks of {host_class(classifier.net).__name__} give more than tokens, "
                "which cannot be kept: take 'all'"
            )
        self._blank = images.new_zeros(1, *images.shape[1:])
        return FrontOutput(tokens, scores, features)

    def run(self, classifier: Classifier, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, C) and pooled features (B, F) from kept tokens (B, P + N, D); :meth:`front` must run before."""
        if self._blank is None:
            raise RuntimeError("front() must run once before run(), for the size of the images")
        blank = self._blank.expand(len(tokens), -1, -1, -1).to(next(classifier.parameters()))
        with self._given(classifier, tokens):
            return classifier.with_features(blank)

    def check(self, classifier: Classifier, images: Tensor) -> None:
        """Refuse a model whose later part depends on more of an image than its tokens.

        Raises:
            ValueError: Its outputs from kept tokens are others than those of the whole model, or tokens are merged
                inside of the last block that does not run.
        """
        last = self._blocks(classifier)[-1] if self.after else None
        if last is not None and is_merging(last) and works_inside(last.merger):
            raise ValueError(
                f"recovery.scope ('rear'): tokens are merged inside of block {self.after}, which must run: keep the "
                f"tokens of block {self.after - 1}, or take 'all'"
            )
        with eval_mode(classifier), torch.no_grad():
            whole = self.front(classifier, images)
            scores, _ = self.run(classifier, whole.tokens)
        error = float((scores - whole.scores).abs().max())
        if not error <= _TOLERANCE * max(1.0, float(whole.scores.abs().max())):
            where = f"block {self.after}" if self.after else "the embedding"
            raise ValueError(
                f"recovery.scope ('rear'): what follows {where} of {host_class(classifier.net).__name__} "
                f"depends on more than the tokens that leave it (scores differ by {error:.2g}): take 'all'"
            )

    def trained(self, classifier: Classifier, tokens: Tensor) -> set[str]:
        """Names of the parameters of ``classifier.net`` that a training on kept tokens reaches."""
        named = {name: p for name, p in classifier.net.named_parameters() if p.requires_grad}
        with eval_mode(classifier), torch.enable_grad():
            learning_mode(classifier)
            scores, features = self.run(classifier, tokens)
            total = scores.float().square().sum() + features.float().square().sum()
            gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}

    def _blocks(self, classifier: Classifier) -> list[nn.Module]:
        """Those that do not run."""
        return [classifier.net.get_submodule(name) for name in self._names[: self.after]]

    @contextmanager
    def _captured(self, classifier: Classifier, keep: Callable[[Any], None]) -> Iterator[None]:
        """Within it, what the last of them gives before any merge, or what enters the first block, is kept."""
        if self.after:
            with _output_captured(self._blocks(classifier)[-1], keep):
                yield
        else:
            first = classifier.net.get_submodule(self._names[0])
            with first.register_forward_pre_hook(lambda _, args: keep(args[0])):
                yield

    @contextmanager
    def _given(self, classifier: Classifier, tokens: Tensor) -> Iterator[None]:
        """Within it, kept tokens take the place of what those blocks, or the embedding, would give."""
        if self.after:
            with _output_given(self._blocks(classifier), tokens if self._rest is None else (tokens, *self._rest)):
                yield
        else:
            first = classifier.net.get_submodule(self._names[0])
            with first.register_forward_pre_hook(lambda _, args: (tokens, *args[1:])):
                yield


@contextmanager
def _output_captured(block: nn.Module, keep: Callable[[Any], None]) -> Iterator[None]:
    """Hand what ``block`` gives, before any merge, to ``keep``."""
    if not is_merging(block):
        with block.register_forward_hook(lambda _, __, output: keep(output)):
            yield
        return

    def merge(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any], **given: Any) -> Any:
        keep(output)
        return type(block).merge(block, output, args, kwargs, **given)

    try:
        vars(block)["merge"] = merge
        yield
    finally:
        vars(block).pop("merge", None)


@contextmanager
def _output_given(blocks: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Let ``blocks`` give ``output`` without running; the last one merges it where it has a merger."""
    last = blocks[-1]

    def give(*_: Any, **__: Any) -> Any:
        return output

    def merge(_: Tensor, *args: Any, **kwargs: Any) -> Any:
        return last.merge(output, args, kwargs)  # type: ignore[operator]

    try:
        for block in blocks:
            vars(block)["forward"] = give
        if is_merging(last):
            vars(last)["forward"] = merge
        yield
    finally:
        for block in blocks:
            vars(block).pop("forward", None)
