"""An object gets a subclass of its own class, made on the fly, and can be given its class back.

A :class:`Subclass` is a mixin whose methods call ``super()``. ``attach(module, Mixin)`` makes the class
``Mixin + type(module)`` (the idiom of ``torch.nn.utils.parametrize`` and of FSDP2) and gives it to that one
object; no ``forward`` of a host library is copied or rewritten, no hook is registered.

Hooks would be shorter and are a trap: ``torch.compile`` does not guard on the hooks of nested modules, so a merged
model could silently run the graph compiled for the plain one.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any, cast

from torch import nn


class Subclass:
    """Base of the mixins that :func:`attach` puts before a module's own class."""

    patchmerger_host_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the mixin and the host's class, both importable; the class made of them is not."""
        reduced = cast(tuple[Any, ...], super().__reduce_ex__(2))
        return (_blank, (mixin_of(self), self.patchmerger_host_class), *reduced[2:])

    def __prepare_scriptable__(self) -> Any:
        """What ``torch.jit.script`` asks of each module first."""
        raise TypeError(
            f"a {self.patchmerger_host_class.__name__} with a merger cannot be scripted: use torch.jit.trace or "
            "torch.export.export"
        )


_combined: dict[tuple[type[Subclass], type[nn.Module]], type[nn.Module]] = {}


def _combine(mixin: type[Subclass], host_class: type[nn.Module]) -> type[nn.Module]:
    """One class for each pair, so that compiled graphs are found again and ``type(a) is type(b)`` holds."""
    if (mixin, host_class) in _combined:
        return _combined[mixin, host_class]
    names: dict[str, Any] = {
        "patchmerger_host_class": host_class,
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
    }
    if hasattr(mixin, "forward"):
        names["forward"] = _with_signature_of(host_class.forward, mixin.forward)
    cls = cast(type[nn.Module], type(host_class.__name__, (mixin, host_class), names))
    return _combined.setdefault((mixin, host_class), cls)


def _with_signature_of(host: Any, function: Any) -> FunctionType:
    """A copy of ``function`` that shows the signature of the host's, which Trainer reads to know what a model takes."""
    copied = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__dict__.update(vars(function))
    copied.__kwdefaults__, copied.__doc__ = function.__kwdefaults__, function.__doc__
    copied.__module__, copied.__qualname__ = function.__module__, function.__qualname__
    copied.__signature__ = inspect.signature(host)  # type: ignore[attr-defined]
    return copied


def mixin_of(module: Subclass) -> type[Subclass]:
    """The mixin in the class of ``module``, also below the subclass that FSDP2 makes of it."""
    made = next(base for base in type(module).__mro__ if "patchmerger_host_class" in vars(base))
    return cast(type[Subclass], made.__bases__[0])


def _blank(mixin: type[Subclass], host_class: type[nn.Module]) -> nn.Module:
    cls = _combine(mixin, host_class)
    return cls.__new__(cls)


def attach(module: nn.Module, mixin: type[Subclass]) -> None:
    """Give ``module`` the class ``mixin + its own class``, in the place of any mixin that it has.

    Its parameters, buffers and hooks stay as they are.
    """
    if isinstance(module, Subclass):
        if mixin_of(module) is mixin:
            return
        detach(module)
    _change_class(module, _combine(mixin, type(module)))


def detach(*modules: nn.Module | Subclass) -> None:
    """Give each module back the class that it had before :func:`attach`: all of them or, on an error, none.

    Raises:
        TypeError: Another library changed a class since (as FSDP2's ``fully_shard`` does).
    """
    for module in modules:
        if "patchmerger_host_class" not in vars(type(module)):
            raise TypeError(f"the class of {type(module).__name__} was changed after the merger was put in")
    for module in modules:
        _change_class(cast(nn.Module, module), vars(type(module))["patchmerger_host_class"])


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if not has_own_forward(module):
        vars(module).pop("forward", None)
    module.__class__ = cls


def has_own_forward(module: nn.Module) -> bool:
    """Whether a ``forward`` in the ``__dict__`` of ``module`` hides that of its class.

    The class's own one does not count: transformers 5.0 leaves it there after it has recorded hidden states.
    """
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def subclassed_modules(model: nn.Module) -> list[nn.Module]:
    """All parts of ``model``, and itself, whose class :func:`attach` made."""
    return [module for module in model.modules() if isinstance(module, Subclass)]


def host_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` as its library made it, whether or not :func:`attach` changed it."""
    return getattr(module, "patchmerger_host_class", type(module))
