"""An object gets a subclass of its own class, made on the fly, and can be given its class back.

A :class:`Subclass` is a mixin whose methods call ``super()``. ``attach(module, Mixin)`` makes the class
``Mixin + type(module)`` (the idiom of ``torch.nn.utils.parametrize`` and of FSDP2) and gives it to that one
object; no ``forward`` of a host library is copied or rewritten, no hook is registered. A module can have one mixin for
each purpose: for merging, and for placing.

Hooks would be shorter and are a trap: ``torch.compile`` does not guard on the hooks of nested modules, so a merged
model could silently run the graph compiled for the plain one.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any, ClassVar, Literal, TypeAlias, cast

from torch import nn

Purpose: TypeAlias = Literal["merging", "placing"]
"""What a mixin is for: merging tokens between blocks, or placing them in the image."""


class Subclass:
    """Base of the mixins that :func:`attach` puts before a module's own class."""

    patchmerger_host_class: type[nn.Module]
    patchmerger_purpose: ClassVar[Purpose] = "merging"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy by the mixins and the host's class, all importable; the class made of them is not."""
        reduced = cast(tuple[Any, ...], super().__reduce_ex__(2))
        return (_blank, (_mixins_of(self), self.patchmerger_host_class), *reduced[2:])

    def __prepare_scriptable__(self) -> Any:
        """What ``torch.jit.script`` asks of each module first."""
        raise TypeError(
            f"a {self.patchmerger_host_class.__name__} with a merger or placed tokens cannot be scripted: use "
            "torch.jit.trace or torch.export.export"
        )


_Mixins: TypeAlias = tuple[type[Subclass], ...]
_combined: dict[tuple[_Mixins, type[nn.Module]], type[nn.Module]] = {}


def _combine(mixins: _Mixins, host_class: type[nn.Module]) -> type[nn.Module]:
    """One class for each combination, so that compiled graphs are found again and ``type(a) is type(b)`` holds."""
    if (mixins, host_class) in _combined:
        return _combined[mixins, host_class]
    names: dict[str, Any] = {
        "patchmerger_host_class": host_class,
        "__module__": host_class.__module__,
        "__qualname__": host_class.__qualname__,
        "__doc__": host_class.__doc__,
    }
    forward = next((mixin.forward for mixin in mixins if hasattr(mixin, "forward")), None)
    if forward is not None:
        names["forward"] = _with_signature_of(host_class.forward, forward)
    cls = cast(type[nn.Module], type(host_class.__name__, (*mixins, host_class), names))
    return _combined.setdefault((mixins, host_class), cls)


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


def mixin_of(module: Subclass, purpose: Purpose = "merging") -> type[Subclass] | None:
    """The mixin for this purpose in the class of ``module``, also below the subclass that FSDP2 makes of it."""
    return next((mixin for mixin in _mixins_of(module) if mixin.patchmerger_purpose == purpose), None)


def _mixins_of(module: object) -> _Mixins:
    made = next((base for base in type(module).__mro__ if "patchmerger_host_class" in vars(base)), None)
    return () if made is None else cast(_Mixins, made.__bases__[:-1])


def _blank(mixins: _Mixins, host_class: type[nn.Module]) -> nn.Module:
    cls = _combine(mixins, host_class)
    return cls.__new__(cls)


def attach(module: nn.Module, mixin: type[Subclass]) -> None:
    """Give ``module`` the class ``mixin + its own class``, in the place of any mixin for the same purpose.

    Its parameters, buffers and hooks stay as they are.
    """
    present = _mixins_of(module)
    if mixin in present:
        return
    _refuse_changed_class(module)
    kept = [other for other in present if other.patchmerger_purpose != mixin.patchmerger_purpose]
    mixins = sorted([mixin, *kept], key=lambda each: each.patchmerger_purpose)  # the same class in whatever order
    _change_class(module, _combine(tuple(mixins), host_class(module)))


def detach(*modules: nn.Module | Subclass, purpose: Purpose = "merging") -> None:
    """Give each module back the class that it had before :func:`attach`: all of them or, on an error, none.

    Mixins for another purpose stay.

    Raises:
        TypeError: Another library changed a class since (as FSDP2's ``fully_shard`` does).
    """
    for module in modules:
        _refuse_changed_class(module)
    for module in modules:
        left = tuple(mixin for mixin in _mixins_of(module) if mixin.patchmerger_purpose != purpose)
        host = host_class(cast(nn.Module, module))
        _change_class(cast(nn.Module, module), _combine(left, host) if left else host)


def _refuse_changed_class(module: object) -> None:
    if _mixins_of(module) and "patchmerger_host_class" not in vars(type(module)):
        raise TypeError(f"the class of {type(module).__name__} was changed after patchmerger changed it")


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if not has_own_forward(module):
        vars(module).pop("forward", None)
    module.__class__ = cls


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of a block after the tokens, as its own class has them."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(host_class(block).forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)[2:]


def has_own_forward(module: nn.Module) -> bool:
    """Whether a ``forward`` in the ``__dict__`` of ``module`` hides that of its class.

    The class's own one does not count: transformers 5.0 leaves it there after it has recorded hidden states.
    """
    own = vars(module).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(module).forward


def subclassed_modules(model: nn.Module, purpose: Purpose = "merging") -> list[nn.Module]:
    """All parts of ``model``, and itself, whose class has a mixin for this purpose."""
    return [m for m in model.modules() if isinstance(m, Subclass) and mixin_of(m, purpose) is not None]


def host_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` as its library made it, whether or not :func:`attach` changed it."""
    return getattr(module, "patchmerger_host_class", type(module))
