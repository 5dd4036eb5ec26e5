"""Make a reducer from the name of its method, and tell the method of one that was made."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, cast

from torch import nn

from patchmerger.reducers.names import METHODS, ReducerName, check_reducer_name
from patchmerger.reducers.reducer import Reducer


def make_reducer(
    name: ReducerName,
    num_tokens: int,
    *,
    dim: int,
    num_patches: int | None = None,
    grid: tuple[int, int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Make a reducer by the name of its method.

    Args:
        name: One of ``patchmerger.reducers.METHODS``.
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        num_patches: Tokens that arrive, N; ``None`` where that is open.
        grid: Rows and columns of patches; ``None`` where tokens are no grid, or images differ in size.
        **arguments: Options of the method, as its class has them.

    Raises:
        ValueError: An unknown ``name`` or option, or a value that the method cannot take.

    Example::

        reducer = make_reducer("topk", 8, dim=384)
    """
    check_reducer_name(name, "name")
    cls = reducer_class(name)
    takes = inspect.signature(cls).parameters
    unknown = sorted(arguments.keys() - takes.keys())
    if unknown:
        options = sorted(takes.keys() - {"num_tokens", "dim", "num_patches", "grid"})
        raise ValueError(f"{unknown[0]} is no option of the reducer {name!r}, which has {', '.join(options) or 'none'}")
    known = {"dim": dim, "num_patches": num_patches, "grid": grid}
    context = {key: value for key, value in known.items() if key in takes}
    return cls(num_tokens=num_tokens, **{**context, **dict(METHODS[name].arguments), **arguments})


def reducer_class(name: ReducerName) -> type[nn.Module]:
    """The class of a method."""
    module, _, cls = METHODS[name].path.rpartition(".")
    return cast(type[nn.Module], getattr(importlib.import_module(module), cls))


def method_of(reducer: nn.Module) -> ReducerName | None:
    """The name of the method of a reducer; ``None`` for one of another library or of one's own."""
    path = f"{type(reducer).__module__}.{type(reducer).__qualname__}"
    for name, method in METHODS.items():
        if method.path == path and all(getattr(reducer, key) == value for key, value in method.arguments):
            return cast(ReducerName, name)
    return None


def saved_arguments(reducer: Reducer) -> dict[str, Any]:
    """What is kept of a reducer beside the name of its method and the tokens that it gives."""
    method = method_of(reducer)
    fixed = dict(METHODS[method].arguments) if method is not None else {}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in reducer.arguments().items()
        if key not in ("num_tokens", "dim", "num_patches", "grid") and key not in fixed
    }
