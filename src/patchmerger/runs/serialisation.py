"""Settings and results as JSON values, and settings read back as their classes, by pydantic."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses become objects, tuples arrays, paths strings.

    Raises:
        TypeError: A part of it is none of these.
    """
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise TypeError(f"this cannot be kept as JSON: {error}") from error


def from_json(kind: type[T], value: Any) -> T:
    """The ``kind``, a dataclass or any other type with annotations, that ``to_json`` made ``value`` of.

    Its own checks run again.

    Raises:
        ValueError: A field that ``kind`` does not have, or a value that it does not take; each is named.
    """
    try:
        read: T = _adapter(cast(Hashable, kind)).validate_json(json.dumps(value), strict=True, extra="forbid")
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or kind.__name__}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"this is no {kind.__name__}: {'; '.join(wrong)}") from error
    return read


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
