"""The kinds of studies that have a file of their own for what the page says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tools.evidence import accelerations, patterns, placing


class Kind(Protocol):
    """What the file of a kind has."""

    def verdict(self, found: Mapping[str, Any], /) -> str:
        """The result in a few words."""

    def scale(self, found: Mapping[str, Any], device: str, /) -> str:
        """How large the study was, in a few words."""

    def conditions(self, found: Mapping[str, Any], /) -> str:
        """Data, models and device, in sentences."""

    def table(self, found: Mapping[str, Any], /) -> str:
        """The numbers, in Markdown."""

    def remarks(self, found: Mapping[str, Any], /) -> Sequence[str]:
        """What a reader must know of the numbers."""


KINDS: Mapping[str, Kind] = {"accelerate": accelerations, "place": placing, "patterns": patterns}
"""By what their results say they are."""
