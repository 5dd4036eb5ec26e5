"""The settings of a base class, taken out of a larger dataclass that inherits its fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar, cast

S = TypeVar("S")


def narrowed(settings: S, kind: type[S]) -> S:
    """The part of ``settings`` that ``kind``, a base class of theirs, describes; its own checks run again."""
    return kind(**{field.name: getattr(settings, field.name) for field in fields(cast(Any, kind)) if field.init})
