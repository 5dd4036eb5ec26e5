"""Colours of charts, which the page turns into those of its light or its dark scheme: ``@d55e00``, ``@d55e00/0.2``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from patchmerger.reports.parts.numbers import METHOD_WORDS
from patchmerger.reports.pictures.style import variant_colours, variant_markers

_SYMBOLS = {
    "*": "star", "o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down",
    "P": "cross", "X": "x", "h": "hexagon", "<": "triangle-left", ">": "triangle-right",
}  # fmt: skip
_METHODS = {text: method for method, text in METHOD_WORDS.items()}
_OF_THE_MERGED = ("accelerated", "recovery")
_NOT_TRAINED = {"merged, not trained": "#e0945a"}
_WRITTEN = re.compile(r'"@([0-9a-f]{6})(?:/[\d.]+)?"')
_DARK_BACKGROUND = "171a20"
_CONTRAST = 5.0


def chart_colour(colour: str) -> str:
    """A colour such as "#d55e00", as charts write it."""
    return "@" + colour.removeprefix("#").lower()


def chart_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each variant, the same as in all other pictures."""
    names = list(names)
    known = variant_colours(map(_variant, names)) | _NOT_TRAINED
    return {name: chart_colour(known[_variant(name)]) for name in names}


def chart_symbols(names: Iterable[str]) -> dict[str, str]:
    """A symbol of plotly for each variant, the same as in all other pictures."""
    names = list(names)
    known = variant_markers(map(_variant, names))
    return {name: _SYMBOLS[known[_variant(name)]] for name in names}


def _variant(name: str) -> str:
    """What pictures know a variant as, by what a page calls it."""
    return "merged" if name in _OF_THE_MERGED else _METHODS.get(name, name)


def faint(colour: str, opacity: float = 0.15) -> str:
    """The same colour, nearly transparent."""
    return f"{colour}/{opacity}"


def on_dark(colour: str) -> str:
    """A colour of six hexadecimal digits, mixed with white until it shows on a dark background (WCAG 2, 5 : 1)."""
    for share in range(0, 100, 4):
        mixed = "".join(f"{round(c + (255 - c) * share / 100):02x}" for c in bytes.fromhex(colour))
        if contrast(mixed, _DARK_BACKGROUND) >= _CONTRAST:
            return mixed
    return "ffffff"


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21, as WCAG 2 defines it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def dark_scheme(written: str) -> Mapping[str, str]:
    """For each colour in the JSON of some charts the one in the dark scheme."""
    return {colour: on_dark(colour) for colour in sorted(set(_WRITTEN.findall(written)))}


def _luminance(colour: str) -> float:
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in bytes.fromhex(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
