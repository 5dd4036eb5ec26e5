"""Checks that settings share: each raises ``ValueError`` with the name of the setting, its value and what would do."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_choices(settings: Any, prefix: str = "") -> None:
    """Each setting of a dataclass whose annotation is a ``Literal``, a list of it, or ``None`` has values of it.

    ``prefix`` is what stands before the names on the command line, such as ``"training."``.
    """
    for name, kind in get_type_hints(type(settings)).items():
        members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        literals = [get_args(member)[0] if get_origin(member) is list else member for member in members]
        literals = [literal for literal in literals if literal is not type(None)]
        if any(get_origin(literal) is not Literal for literal in literals):
            continue
        allowed = list(dict.fromkeys(value for literal in literals for value in get_args(literal)))
        value = getattr(settings, name)
        several = isinstance(value, list | tuple) and any(get_origin(member) is list for member in members)
        for one in value if several else [value]:
            if one not in allowed and not (value is None and type(None) in members):
                raise ValueError(f"{prefix}{name} ({one!r}) must be one of {', '.join(map(repr, allowed))}")


def check_count(name: str, value: Any, at_least: int = 1) -> int:
    """A number that is given by this name: whole, and at least so much."""
    if type(value) is not int or value < at_least:
        raise ValueError(f"{name} ({value!r}) must be a whole number of at least {at_least}")
    return value


def check_counts(settings: Any, *names: str, prefix: str = "", advice: str = "") -> None:
    """Each of these settings is ``None``, or whole numbers of at least 1: one, or a list of them."""
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, list | tuple) else [value]
        if value is not None and (not numbers or any(type(number) is not int or number < 1 for number in numbers)):
            raise ValueError(f"{prefix}{name} ({value!r}) must be a whole number of at least 1{advice}")


def check_at_least(least: int, settings: Any, *names: str, prefix: str = "") -> None:
    """Each of these settings is ``None`` or at least so much."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= least:
            bound = f"at least {least}" if least else "0 or more"
            raise ValueError(f"{prefix}{name} ({value}) must be {bound}")


def check_above(bound: int, settings: Any, *names: str, prefix: str = "") -> None:
    """Each of these settings is ``None`` or more than that."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > bound:
            raise ValueError(f"{prefix}{name} ({value}) must be above {bound}")
