"""Fonts for names in writing that matplotlib's own font lacks, such as Chinese, Japanese and Korean."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

# The beginnings of names, those first that have most characters; of a system's fonts these have plain letters.
_FALLBACKS = (
    "Noto Sans CJK", "Source Han Sans", "Noto Sans", "PingFang", "Hiragino Sans", "Heiti", "Apple SD Gothic",
    "Microsoft YaHei", "SimHei", "Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "WenQuanYi", "IPA", "Nanum",
    "Droid Sans Fallback", "Arial Unicode MS", "Unifont",
)  # fmt: skip
_named: set[str] = set()


def use_fonts_for(figure: Figure) -> None:
    """Give the texts of a figure fonts of the system for what theirs lacks; say once of each character that none has.

    Nothing may be added to the figure afterwards.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels(which="both")  # which are made while drawing otherwise
    texts: list[Text] = figure.findobj(Text)
    lacking = {text: _lacking(text.get_text(), text.get_fontfamily()) for text in texts}
    wanted, chosen = set[str]().union(*lacking.values()), list[str]()
    for family in _installed() if wanted else ():
        if wanted > (left := _lacking(wanted, [family])):
            chosen.append(family)
            wanted = left
    for text in texts:
        if lacking[text] and chosen:
            text.set_fontfamily([*text.get_fontfamily(), *chosen])
    if new := wanted - _named:
        _named.update(new)
        shown = " ".join(sorted(new)[:20]) + (" …" if len(new) > 20 else "")
        warnings.warn(
            f"no font here has the characters {shown}, which are boxes in pictures: install Noto Sans CJK for Chinese, "
            "Japanese and Korean, for other writing the Noto Sans of its name",
            stacklevel=2,
        )


@contextmanager
def no_news_of_glyphs() -> Iterator[None]:
    """Within it, matplotlib says nothing of each glyph that it lacks: :func:`use_fonts_for` did."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _installed() -> list[str]:
    """The families of this system that may help, the likeliest first."""
    names = sorted({font.name for font in fontManager.ttflist})
    return list(dict.fromkeys(name for start in _FALLBACKS for name in names if name.startswith(start)))


def _lacking(text: Collection[str], families: Collection[str]) -> set[str]:
    """The characters of a text that are no spaces or controls, and have no glyph in any of the families."""
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    seen = {character for character in text if character.isprintable() and not character.isspace()}
    return {character for character in seen if not any(font.get_char_index(ord(character)) for font in fonts)}
