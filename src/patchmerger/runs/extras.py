"""Libraries that only a part of patchmerger needs: imported when that part is used, or named with the extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class MissingExtraError(ModuleNotFoundError):
    """A library is not installed; the message names the extra that brings it."""


def import_extra(module: str, extra: str, what_for: str) -> Any:
    """Import a module, such as ``"onnxruntime.quantization"``, of a library that an extra of patchmerger brings.

    Raises:
        MissingExtraError: It is not installed; the message names what needs it, the library and the extra.
    """
    library = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != library:
            raise
        raise MissingExtraError(
            f"{what_for} needs {library}, which is not installed: pip install 'patchmerger[{extra}]'", name=library
        ) from error
