"""Tokens, FLOPs and parameters of each part of a model, counted in one run on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchmerger.hosts import block_names, find_host
from patchmerger.hosts.example_inputs import example_input
from patchmerger.hosts.state import refuse_unsupported_state
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.blocks import MergeState, is_merging
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.meta_device import ShapesAlone

EMBEDDING, HEAD = "patch_embed", "head"
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model, for one image.

    Attributes:
        name: Its name in the model, such as ``blocks.0`` and ``blocks.5.merger``; ``patch_embed`` is all that runs
            before the blocks, ``head`` all that runs after them.
        tokens_in: Tokens that come in; for ``patch_embed`` the patches.
        tokens_out: Tokens that go on, prefix tokens counted in.
        flops: 1 multiply-add = 2 FLOPs.
        params: Parameters of this part; those shared with an earlier part are counted there.
    """

    name: str
    tokens_in: int
    tokens_out: int
    flops: int
    params: int


def on_meta(module: nn.Module) -> Any:
    """A copy on the meta device, in eval mode and without hooks; no weight is copied. Quantised weights are refused."""
    refuse_unsupported_state(module, "counted", meta=True)
    computed = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    tensors = [*module.parameters(), *module.buffers(), *computed]  # the last as pruning and weight norms leave them
    memo: dict[int, object] = {}
    for tensor in tensors:
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    clone = copy.deepcopy(module, memo).eval()
    for part in clone.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return clone


def flops_of(model: nn.Module) -> int:
    """FLOPs of a supported model for one image, with its mergers; the model is not changed."""
    return sum(part.flops for part in count_parts(on_meta(model)))


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Torch's counter of FLOPs, in inference and with nothing that escapes it."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel is not counted
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter, ShapesAlone():
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def count_parts(
    model: nn.Module, image_size: tuple[int, int] | None = None, known: dict[Any, int] | None = None
) -> list[PartCost]:
    """Count each part, in the order in which they run, for one image of that size in pixels.

    The model is on the meta device and takes images of that size. ``known`` are FLOPs of blocks by what decides them,
    of a run of a like model before; those of this run are added.
    """
    host = find_host(model)
    blocks = block_names(model, host)
    inserted = {merger.name: merger.module for merger in mergers(model)}
    run = _Run(sequence_first=frozenset(blocks if host.sequence_first else ()))
    handles = []
    for name, module in [*zip(blocks, host.blocks, strict=True), *inserted.items()]:
        handles.append(module.register_forward_pre_hook(partial(run.before, name)))
        handles.append(module.register_forward_hook(partial(run.after, name)))
    handles.append(host.blocks[-1].register_forward_hook(run.end_blocks))
    for name, module in model.named_modules():
        if not any(name == block or name.startswith(f"{block}.") for block in blocks):
            handles.append(module.register_forward_pre_hook(partial(run.outside_blocks, name)))
    try:
        with _alike_blocks_run_once(host.blocks, run, {} if known is None else known):
            output = _run(model, image_size, run)
    finally:
        for handle in handles:
            handle.remove()
    return _parts(model, host.num_prefix_tokens, blocks, run, output)


@dataclass
class _Seen:
    """What the hooks saw of one block or merger."""

    began: int
    tokens_in: int
    flops: int = 0
    tokens_out: int = 0


@dataclass
class _Run:
    """What the hooks note during one run."""

    counter: FlopCounterMode | None = None
    sequence_first: frozenset[str] = frozenset()
    skipped: int = 0
    total: int = 0
    seen: dict[str, _Seen] = field(default_factory=dict)
    after_blocks: bool = False
    head_modules: set[str] = field(default_factory=set)
    children: set[str] = field(default_factory=set)
    images_alone: bool = False

    def flops(self) -> int:
        return self.skipped + (self.counter.get_total_flops() if self.counter is not None else 0)

    def before(self, name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen[name] = _Seen(self.flops(), args[0].shape[self.axis_of_tokens(name)])

    def after(self, name: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        seen = self.seen[name]
        seen.flops, seen.tokens_out = self.flops() - seen.began, tokens.shape[self.axis_of_tokens(name)]

    def axis_of_tokens(self, name: str) -> int:
        return 0 if name in self.sequence_first else 1

    def end_blocks(self, *_: Any) -> None:
        self.after_blocks = True

    def outside_blocks(self, name: str, *_: Any) -> None:
        self.children.add(name.partition(".")[0])
        if self.after_blocks:
            self.head_modules.add(name)


def _run(model: nn.Module, image_size: tuple[int, int] | None, run: _Run) -> Any:
    example, encoder = example_input(model, image_size).images_alone(model)
    run.images_alone = encoder is not model
    try:
        with flop_counter() as run.counter:
            output = example.run(encoder)
    except Exception as error:
        raise ValueError(
            ("" if image_size is None else f"image_size ({image_size}): ")
            + f"counting {host_class(model).__name__} on an input of shape {tuple(example.images.shape)} failed: "
            f"{error}"
        ) from error
    run.total = run.flops()
    return output


@contextmanager
def _alike_blocks_run_once(blocks: Iterable[nn.Module], run: _Run, known: dict[Any, int]) -> Iterator[None]:
    """Skip blocks that are like an earlier one and are given tensors of the same shapes: they cost the same.

    Nothing is computed on the meta device, so the tokens may pass a block by. A block that merges always runs, and so
    does one whose tokens carry something beside their numbers, such as their centroids.
    """

    def once(block: nn.Module) -> Callable[..., Any]:
        forward, kind = block.forward, tuple(_kind(block))

        def run_or_skip(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            key = (kind, *map(_shape, (x, *args)), *((name, _shape(value)) for name, value in kwargs.items()))
            if key in known and not vars(x):
                run.skipped += known[key]
                return x
            before = run.flops()
            output = forward(x, *args, **kwargs)
            if isinstance(output, Tensor) and output.shape == x.shape and not vars(output):
                known[key] = run.flops() - before
            return output

        return run_or_skip

    changed = [block for block in blocks if not is_merging(block) and "forward" not in vars(block)]
    for block in changed:
        block.forward = once(block)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def _kind(block: nn.Module) -> list[Any]:
    """What decides the cost of a block beside its input: classes, shapes, and all settings but fractions."""
    found: list[Any] = []
    for name, module in block.named_modules():
        found += [name, type(module)]
        tensors = (*module._parameters.items(), *module._buffers.items())
        settings = [(key, value) for key, value in vars(module).items() if key not in _OF_ANY_MODULE]
        found += [(key, _shape(value)) for key, value in (*tensors, *settings)]
    return found


def _shape(value: Any) -> Any:
    """What of a value can change the cost: of a tensor its shape, of a fraction (a probability, an epsilon) nothing."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, float):
        return float
    return repr(value) if isinstance(value, int | str | tuple | list | MergeState | None) else id(value)


def _parts(model: nn.Module, num_prefix_tokens: int, blocks: list[str], run: _Run, output: Any) -> list[PartCost]:
    """The parts, from what the hooks saw."""
    params = _parameters(model, blocks, run)
    first = run.seen[blocks[0]]
    tokens = first.tokens_in
    parts = [PartCost(EMBEDDING, tokens - num_prefix_tokens, tokens, first.began, params[EMBEDDING])]
    for name in blocks:
        block, merger = run.seen[name], run.seen.get(f"{name}.merger")
        if merger is None:
            parts.append(PartCost(name, block.tokens_in, block.tokens_out, block.flops, params[name]))
        else:  # it runs within its block, on the tokens that are merged; counted in are those that stay as they are
            tokens = block.tokens_in
            parts.append(PartCost(name, tokens, tokens, block.flops - merger.flops, params[name]))
            name = f"{name}.merger"
            parts.append(PartCost(name, tokens, block.tokens_out, merger.flops, params[name]))
    rest = run.total - sum(part.flops for part in parts)
    predictions = output.shape[1] if isinstance(output, Tensor) and output.ndim == 3 else 1
    parts.append(PartCost(HEAD, parts[-1].tokens_out, predictions, rest, params[HEAD]))
    return parts


def _parameters(model: nn.Module, blocks: list[str], run: _Run) -> dict[str, int]:
    """Parameters by part; without those that see no image, where a model compares images with texts."""
    names = [f"{block}.merger" for block in blocks if f"{block}.merger" in run.seen] + list(blocks)
    counts = dict.fromkeys([EMBEDDING, *names, HEAD], 0)
    for key, parameter in model.named_parameters():
        if run.images_alone and key.partition(".")[0] not in run.children:
            continue
        owner = HEAD if key.rpartition(".")[0] in run.head_modules else EMBEDDING
        counts[next((name for name in names if key.startswith(f"{name}.")), owner)] += parameter.numel()
    return counts
