"""Checks that settings share: each raises ``ValueError`` with the name of the setting, its value and what would do."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_choices(settings: Any, prefix: str = "") -> None:
    """Each setting whose annotation is a ``Literal``, or that or ``None``, has one of its values.

    Args:
        settings: A dataclass.
        prefix: What stands before the names on the command line, such as ``"training."``.
    """
    for name, kind in get_type_hints(type(settings)).items():
        members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        named = [member for member in members if get_origin(member) is Literal]
        if not named or any(member is not type(None) for member in members if member not in named):
            continue
        allowed = [value for member in named for value in get_args(member)]
        value = getattr(settings, name)
        if value not in allowed and not (value is None and type(None) in members):
            raise ValueError(f"{prefix}{name} ({value!r}) must be one of {', '.join(map(repr, allowed))}")


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
