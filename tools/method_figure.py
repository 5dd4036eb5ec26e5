"""The figure of the method, docs/figures/method.svg, light and dark: ``python -m tools.method_figure``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from patchmerger.reports.pictures.map_pixels import token_colours
from patchmerger.runs.files import write_text

FIGURE = Path("docs/figures/method.svg")

_STYLE = """
  text { font: 14px system-ui, "DejaVu Sans", sans-serif; fill: #24292f }
  .small { font-size: 12px; fill: #57606a }
  .title { font-weight: 600 }
  .equation { font: italic 15px "DejaVu Serif", Georgia, serif }
  .line { stroke: #57606a; stroke-width: 1.5; fill: none }
  .head { fill: #57606a }
  .block { fill: #eef1f5; stroke: #8c959f; stroke-width: 1.2 }
  .patch { fill: #c4cbd4; stroke: #ffffff; stroke-width: 1 }
  .merger { fill: #fff4e0; stroke: #b26a00; stroke-width: 1.8 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .small { fill: #9ea7b3 }
    .line { stroke: #9ea7b3 } .head { fill: #9ea7b3 }
    .block { fill: #22272e; stroke: #768390 } .patch { fill: #57606a; stroke: #22272e }
    .merger { fill: #3a2a10; stroke: #e69f00 }
  }
"""
_SIDE = 14
_GRID = 6
_TOKENS = 4
# Which token takes most of each patch in the drawing: a region each, as after training.
_REGIONS = ("001111", "001111", "022211", "322233", "322333", "333333")


def figure() -> str:
    """The SVG."""
    colours = token_colours(8)[:_TOKENS]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 52 860 240" role="img" aria-labelledby="title">',
        '<title id="title">N patches go through the first blocks; the merger makes M tokens of them, each a weighted '
        "mean; the later blocks see only those M.</title>",
        f"<style>{_STYLE}</style>",
        *_patches(20, 92, colours),
        _text(62, 72, "N patches", "title", middle=True),
        _text(62, 200, "X, (N, D)", "small", middle=True),
        *_blocks(140, "blocks 1 … L/2", "attention over N: expensive"),
        *_arrow(112, 138),
        *_arrow(264, 300),
        '<rect class="merger" x="302" y="62" width="250" height="144" rx="8"/>',
        _text(427, 88, "PatchMerger", "title", middle=True),
        _text(322, 118, "S = W · norm(X)ᵀ", "equation"),
        _text(322, 146, "A = softmax(S) over patches", "equation"),
        _text(322, 174, "Y = A · X", "equation"),
        _text(322, 196, "W: M learned queries, (M, D)", "small"),
        *_arrow(554, 588),
        *_tokens(590, colours),
        _text(603, 226, "M tokens", "title", middle=True),
        _text(603, 244, "Y, (M, D)", "small", middle=True),
        *_arrow(620, 654),
        *_blocks(656, "blocks L/2 + 1 … L", "attention over M: next to nothing"),
        *_arrow(780, 812),
        _text(818, 140, "head", ""),
        '<path class="line" d="M 62 266 L 62 280 L 603 280 L 603 256" stroke-dasharray="4 4"/>',
        _text(332, 274, "each token is a mean of all patches, mostly of those in its colour", "small", middle=True),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _patches(left: int, top: int, colours: Sequence[str]) -> list[str]:
    rectangles = []
    for row, line in enumerate(_REGIONS):
        for column, token in enumerate(line):
            x, y, colour = left + _SIDE * column, top + _SIDE * row, colours[int(token)]
            rectangles.append(
                f'<rect class="patch" x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" style="fill:{colour}"/>'
            )
    return rectangles


def _tokens(left: int, colours: Sequence[str]) -> list[str]:
    return [
        f'<rect x="{left}" y="{76 + 31 * place}" width="26" height="26" rx="4" fill="{colour}"/>'
        for place, colour in enumerate(colours)
    ]


def _blocks(left: int, title: str, below: str) -> list[str]:
    rectangles = [
        f'<rect class="block" x="{left + 42 * place}" y="92" width="34" height="84" rx="5"/>' for place in range(3)
    ]
    return [
        *rectangles,
        _text(left + 59, 72, title, "title", middle=True),
        _text(left + 59, 200, below.split(": ")[0] + ":", "small", middle=True),
        _text(left + 59, 216, below.split(": ")[1], "small", middle=True),
    ]


def _arrow(start: int, end: int) -> list[str]:
    return [
        f'<path class="line" d="M {start} 134 L {end - 6} 134"/>',
        f'<path class="head" d="M {end} 134 l -8 -4 l 0 8 z"/>',
    ]


def _text(x: int, y: int, text: str, kind: str, *, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'<text x="{x}" y="{y}" class="{kind}"{anchor}>{text}</text>'


def main(arguments: Sequence[str]) -> None:
    """Write the figure.

    Args:
        arguments: The file; by default that of the pages.
    """
    path = Path(arguments[0]) if arguments else FIGURE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, figure())
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
