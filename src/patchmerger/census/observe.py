"""What goes through a model, watched from outside: how many tokens, and which of them are the same for any image.

Nothing here asks a host's description for more than which modules are its blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from patchmerger.hosts.example_inputs import Example
from patchmerger.mechanism.subclassing import host_class

Shape = tuple[int, ...]


class NotAsDescribedError(ValueError):
    """A model does something else than its description says."""


@dataclass(frozen=True)
class ObservedRun:
    """One run of a model on one image: tokens that arrived at each block, first to last, and that left the last one.

    ``patches`` are those that the model cut the image into, ``None`` where no layer tells; ``outputs`` the shapes of
    the tensors that it gave.
    """

    arriving: tuple[int, ...]
    leaving: int
    patches: int | None
    outputs: tuple[Shape, ...]


@torch.no_grad()
def observe_run(model: nn.Module, blocks: Sequence[nn.Module], example: Example) -> ObservedRun:
    """Run ``model`` once and count the tokens at its blocks; the meta device will do.

    Raises:
        NotAsDescribedError: The blocks do not run one after another, each once, are not all of their class that run,
            or do not take and give tokens (B, N, D).
    """
    order: list[int] = []
    arriving: list[Shape] = []
    leaving: list[Shape] = []
    embedded: list[tuple[nn.Module, Shape]] = []
    others: list[str] = []
    classes = {host_class(block) for block in blocks}

    def arrives(number: int, given: Tensor | None) -> None:
        order.append(number)
        arriving.append(() if given is None else tuple(given.shape))

    def embeds(module: nn.Module, _: Any, output: Any) -> None:
        if not order and isinstance(output, Tensor):
            embedded.append((module, tuple(output.shape)))

    def leaves(_: nn.Module, __: Any, output: Any) -> None:
        leaving.append(next((tuple(t.shape) for t in _tensors(output)), ()))

    with ExitStack() as hooks:
        for number, block in enumerate(blocks, start=1):
            hooks.enter_context(_arrival(block, lambda given, number=number: arrives(number, given)))
        for name, module in _outside(model, blocks):
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(embeds))
            if host_class(module) in classes:
                hooks.enter_context(_arrival(module, lambda _, name=name: others.append(name)))
        hooks.enter_context(blocks[-1].register_forward_hook(leaves))
        output = example.run(model)

    if order != list(range(1, len(blocks) + 1)):
        raise NotAsDescribedError(
            f"its {len(blocks)} blocks should run one after another, each once, but those that ran are {order}"
        )
    if others:
        raise NotAsDescribedError(f"{others[0]} runs too, a block like those of its description, which leaves it out")
    batch = example.images.shape[0]
    for number, shape in [*enumerate(arriving, start=1), *((len(blocks), shape) for shape in leaving)]:
        if len(shape) != 3 or shape[0] != batch:
            raise NotAsDescribedError(
                f"block {number} takes or gives {shape or 'no tensor'}, which should be (B, N, D) with B = {batch}"
            )
    return ObservedRun(
        arriving=tuple(shape[1] for shape in arriving),
        leaving=leaving[0][1],
        patches=_count_patches(embedded),
        outputs=tuple(tuple(tensor.shape) for tensor in _tensors(output)),
    )


def _count_patches(embedded: Sequence[tuple[nn.Module, Shape]]) -> int | None:
    """Places that the last convolution before the blocks gives; without any, tokens of the first linear layer."""
    grids = [shape[2:] for module, shape in embedded if not isinstance(module, nn.Linear)]
    if grids:
        return math.prod(grids[-1])
    return next((shape[1] for _, shape in embedded if len(shape) == 3), None)


@torch.no_grad()
def constant_tokens(model: nn.Module, blocks: Sequence[nn.Module], example: Example, *, seed: int = 0) -> list[bool]:
    """Whether each token that arrives at the first block is the same for two images of noise.

    So prefix tokens (class, register tokens) can be told from patches. Only what stands before the blocks runs; it
    must be on a real device, with weights that are not zero. Noise takes the place of the images of ``example``.
    """
    generator = torch.Generator().manual_seed(seed)
    noises = (torch.randn(example.images.shape, generator=generator).to(example.images) for _ in range(2))
    first, second = (_tokens_at_first_block(model, blocks[0], replace(example, images=noise)) for noise in noises)
    return [bool(same) for same in (first == second).all(dim=-1).all(dim=0)]


class _Arrived(Exception):  # noqa: N818 - it ends a run as wanted, and is no error
    def __init__(self, tokens: Tensor | None) -> None:
        self.tokens = tokens


def _tokens_at_first_block(model: nn.Module, block: nn.Module, example: Example) -> Tensor:
    def stop(given: Tensor | None) -> None:
        raise _Arrived(given)

    with _arrival(block, stop):
        try:
            example.run(model)
        except _Arrived as arrived:
            if arrived.tokens is not None:
                return arrived.tokens
    raise NotAsDescribedError("no tokens arrived at block 1")


@torch.no_grad()
def fill_stem(model: nn.Module, blocks: Sequence[nn.Module], *, seed: int = 0) -> None:
    """Move all but the blocks, which stay there, from the meta device to the CPU, with random weights."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in _outside(model, blocks):
        module.to_empty(device="cpu", recurse=False)
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.normal_(generator=generator)
        for buffer in module.buffers(recurse=False):
            # 1 is a variance that can be divided by, and 0 the first place of any table.
            buffer.fill_(1 if buffer.is_floating_point() else 0)


def _outside(model: nn.Module, blocks: Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    """All modules of ``model``, with their names, but the blocks and their parts."""
    inside = {id(module) for block in blocks for module in block.modules()}
    return [(name, module) for name, module in model.named_modules() if id(module) not in inside]


@contextmanager
def _arrival(block: nn.Module, tell: Any) -> Iterator[None]:
    """Call ``tell`` with the tokens whenever ``block`` is called."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tell(next(iter(_tensors([*args, *kwargs.values()])), None))

    with block.register_forward_pre_hook(before, with_kwargs=True):
        yield


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in what a module takes or gives, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
