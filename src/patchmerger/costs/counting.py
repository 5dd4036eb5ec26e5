"""Cost of a model without formulas of its own: one run on the meta device under ``torch.utils.flop_counter``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchmerger.costs.block_costs import on_meta
from patchmerger.hosts import block_names, find_host
from patchmerger.hosts.example_inputs import example_input
from patchmerger.inserted import mergers
from patchmerger.insertion import remove
from patchmerger.mechanism.subclassing import host_class

EMBEDDING, HEAD = "patch_embed", "head"


@dataclass
class CountedPart:
    """One part of a model as a run showed it.

    Attributes:
        name: Its name in the model; ``patch_embed`` is all before the blocks, ``head`` all after them.
        tokens_in: Tokens that came in.
        tokens_out: Tokens that went on.
        flops: 1 multiply-add = 2 FLOPs.
        params: Parameters that are not counted in an earlier part.
    """

    name: str
    tokens_in: int = 0
    tokens_out: int = 0
    flops: int = 0
    params: int = 0


@dataclass
class _Run:
    """What the hooks note during one run."""

    counter: FlopCounterMode
    parts: dict[str, CountedPart]
    after_blocks: bool = False
    head_modules: set[str] = field(default_factory=set)
    began: dict[str, int] = field(default_factory=dict)


def count_parts(model: nn.Module, image_size: tuple[int, int] | None) -> list[CountedPart]:
    """Tokens, FLOPs and parameters of each part, in the order in which they run, for one image.

    Args:
        model: A supported model, on any device; it is not changed and nothing of it runs.
        image_size: Pixels; ``None`` is the model's own.

    Raises:
        ValueError: The model does not take images of that size.
    """
    return _count(_sized(on_meta(model), image_size), image_size)


def count_plain(model: nn.Module, image_size: tuple[int, int] | None) -> int:
    """FLOPs of one image in the same model without its mergers."""
    plain = _sized(on_meta(model), image_size)
    return sum(part.flops for part in _count(remove(plain) if mergers(plain) else plain, image_size))


def _sized(model: Any, image_size: tuple[int, int] | None) -> Any:
    """A model on the meta device, its position embedding fitted to the image size where timm can do that."""
    if image_size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=image_size)
    return model


def _count(model: nn.Module, image_size: tuple[int, int] | None) -> list[CountedPart]:
    host = find_host(model)
    blocks = dict(zip(block_names(model, host), host.blocks, strict=True))
    inserted = {merger.name: merger for merger in mergers(model)}
    names = [name for block in blocks for name in (block, f"{block}.merger") if name in blocks or name in inserted]
    run = _Run(FlopCounterMode(display=False), {name: CountedPart(name) for name in (EMBEDDING, *names, HEAD)})
    for name, block in blocks.items():
        block.register_forward_pre_hook(partial(_before, run, name))
        block.register_forward_hook(partial(_after, run, name, name == [*blocks][-1]))
    for name, merger in inserted.items():
        merger.module.register_forward_pre_hook(partial(_before, run, name))
        merger.module.register_forward_hook(partial(_after, run, name, False))
    for name, module in model.named_modules():
        if not any(name == part or name.startswith(f"{part}.") for part in blocks):
            module.register_forward_pre_hook(partial(_note_head, run, name))
    total = _run(model, run, image_size)

    for name in inserted:  # a merger runs within its block
        part, block_part = run.parts[name], run.parts[name.removesuffix(".merger")]
        part.tokens_in, part.tokens_out = block_part.tokens_in, block_part.tokens_out
        block_part.tokens_out = block_part.tokens_in
        block_part.flops -= part.flops
    first, last = run.parts[next(iter(blocks))], run.parts[names[-1]]
    embedding, head = run.parts[EMBEDDING], run.parts[HEAD]
    embedding.flops = run.began[first.name]
    embedding.tokens_in, embedding.tokens_out = first.tokens_in - host.num_prefix_tokens, first.tokens_in
    head.flops = total - sum(part.flops for part in run.parts.values())
    head.tokens_in, head.tokens_out = last.tokens_out, 1
    for name, parameter in model.named_parameters():
        run.parts[_part_of(name, run, names)].params += parameter.numel()
    return list(run.parts.values())


def _part_of(parameter: str, run: _Run, names: list[str]) -> str:
    inside = [name for name in names if parameter.startswith(f"{name}.")]
    if inside:
        return max(inside, key=len)
    return HEAD if parameter.rpartition(".")[0] in run.head_modules else EMBEDDING


def _run(model: nn.Module, run: _Run, image_size: tuple[int, int] | None) -> int:
    example = example_input(model, image_size)
    if image_size is not None and host_class(model).__module__.startswith("transformers."):
        example.others["interpolate_pos_encoding"] = True
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel escapes the counter
    try:
        with torch.no_grad(), run.counter:
            example.run(model)
    except Exception as error:
        raise ValueError(
            f"image_size ({image_size}): counting {host_class(model).__name__} on an input of shape "
            f"{tuple(example.images.shape)} failed: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return run.counter.get_total_flops()


def _before(run: _Run, name: str, _module: nn.Module, args: tuple[Any, ...]) -> None:
    run.began[name] = run.counter.get_total_flops()
    run.parts[name].tokens_in = args[0].shape[1]


def _after(run: _Run, name: str, is_last: bool, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    tokens: Tensor = output[0] if isinstance(output, tuple) else output
    run.parts[name].flops = run.counter.get_total_flops() - run.began[name]
    run.parts[name].tokens_out = tokens.shape[1]
    run.after_blocks = run.after_blocks or is_last


def _note_head(run: _Run, name: str, _module: nn.Module, _args: tuple[Any, ...]) -> None:
    if run.after_blocks:
        run.head_modules.add(name)
