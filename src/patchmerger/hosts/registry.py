"""Find the description of a model: one that a user registered, or that of the library which made it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import nn

from patchmerger.hosts.host import Host, UnsupportedModelError, refuse_unusual_blocks
from patchmerger.hosts.open_clip import describe_open_clip
from patchmerger.hosts.refused import refuse_known
from patchmerger.hosts.state import refuse_adapters, refuse_wrapped
from patchmerger.hosts.timm.supported import describe_timm
from patchmerger.hosts.torchvision import describe_torchvision
from patchmerger.hosts.transformers.supported import describe_transformers
from patchmerger.mechanism.placed_tokens import num_placed_tokens
from patchmerger.mechanism.subclassing import host_class

ModelT = TypeVar("ModelT", bound=nn.Module)
Describe = Callable[[ModelT], Host]

# Each imports its library only where `patchmerger` needs that anyway: transformers and open_clip need not be installed.
_LIBRARIES: dict[str, Callable[..., Host | None]] = {
    "open_clip": describe_open_clip,
    "timm": describe_timm,
    "torchvision": describe_torchvision,
    "transformers": describe_transformers,
}
# Reasons that are no reason against a Vision Transformer inside of the model.
_MAY_HOLD_ANOTHER = ("unknown", "wrapped", "not one sequence")
_registered: dict[type[nn.Module], Callable[..., Host]] = {}


def register_host(cls: type[ModelT]) -> Callable[[Describe[ModelT]], Describe[ModelT]]:
    """Teach the library a model class of one's own: a decorator for the function that describes it.

    The class itself is meant, not its subclasses, whose forward pass may be another.

    Args:
        cls: The class of the model.

    Raises:
        TypeError: ``cls`` is no subclass of ``nn.Module``.

    Example::

        @register_host(MyViT)
        def describe(model: MyViT) -> Host:
            return Host(blocks=model.layers, dim=model.width, num_prefix_tokens=1)
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls ({cls!r}) must be a subclass of torch.nn.Module")

    def register(describe: Describe[ModelT]) -> Describe[ModelT]:
        _registered[cls] = describe
        return describe

    return register


def find_host(model: nn.Module) -> Host:
    """Describe a supported model, with or without mergers: its blocks, width and tokens.

    Raises:
        UnsupportedModelError: The model's class is not supported, or it is wrapped, scripted, compiled or
            sharded; the message names the class, the reason and what would do.
        TypeError: ``model`` is no ``nn.Module``, or its registered description is no :class:`Host`.
        ValueError: Its registered description cannot be true.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_wrapped(model)
    try:
        host = _describe(model)
    except UnsupportedModelError as error:
        if error.kind not in _MAY_HOLD_ANOTHER:
            raise
        _refuse_holder(model, error.reason)
        raise
    if host is None:
        reason = "it is not known to be a plain Vision Transformer (one sequence of tokens through one list of blocks)"
        _refuse_holder(model, reason)
        raise UnsupportedModelError(model, reason, "if it is one, describe it with patchmerger.register_host")
    refuse_unusual_blocks(model, host.blocks)
    placed = num_placed_tokens(model)
    return host if placed is None else replace(host, num_patches=placed, grid="varies")


def _describe(model: nn.Module) -> Host | None:
    cls = host_class(model)
    if cls in _registered:
        return _checked(model, _registered[cls](model))
    describe = _LIBRARIES.get(cls.__module__.split(".")[0])
    host = None if describe is None else describe(model)
    if host is None:
        refuse_known(model)
    return host


def _refuse_holder(model: nn.Module, reason: str) -> None:
    """Refuse a model that is no Vision Transformer but holds one, and name it."""
    inside = supported_inside(model)
    if not inside:
        return
    refuse_adapters(model, inside)
    paths = " or ".join(f"model.{path}" for path in inside)
    raise UnsupportedModelError(model, reason, f"it holds one that can: pass {paths}", "wrapped", inside)


def supported_inside(model: nn.Module) -> list[str]:
    """Names of the submodules of ``model`` that can take a merger, none of them in another."""
    found: list[str] = []
    closed: list[str] = []
    for path, module in model.named_modules():
        if not path or any(path.startswith(f"{outer}.") for outer in (*found, *closed)):
            continue
        try:
            if _describe(module) is not None:
                found.append(path)
        except UnsupportedModelError as error:
            if error.kind not in _MAY_HOLD_ANOTHER:
                closed.append(path)
    return found


def _checked(model: nn.Module, host: object) -> Host:
    """A user's description; what it cannot mean is refused before it becomes an error far away, or none."""
    name = host_class(model).__name__
    if not isinstance(host, Host):
        raise TypeError(f"the description registered for {name} gives {type(host).__name__}, not a patchmerger.Host")
    for field, least in (("dim", 1), ("num_prefix_tokens", 0), ("num_patches", 1)):
        value = getattr(host, field)
        if (value is not None or field != "num_patches") and (type(value) is not int or value < least):
            raise ValueError(f"{field} ({value!r}) of the description of {name} must be a whole number from {least}")
    block_names(model, host)
    classes = {host_class(block) for block in host.blocks}
    places = {id(block): place for place, block in reversed(list(enumerate(host.blocks)))}
    for path, parent in model.named_modules():
        if not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        found = [places.get(id(child), -1) for child in parent.children() if host_class(child) in classes]
        if max(found, default=-1) >= 0 and (-1 in found or found != sorted(found)):
            raise ValueError(f"blocks of the description of {name} must be all {len(found)} of {path}, in their order")
    return replace(host, counted=True)


def block_names(model: nn.Module, host: Host) -> list[str]:
    """The names of the blocks in ``model``, as state-dict keys have them.

    Raises:
        ValueError: A block is no submodule of the model.
    """
    names = {id(module): name for name, module in model.named_modules()}
    for number, block in enumerate(host.blocks, start=1):
        if id(block) not in names:
            raise ValueError(f"blocks[{number - 1}] of the host's description is no part of {type(model).__name__}")
    return [names[id(block)] for block in host.blocks]
