"""The cells of a sweep: mergers by block and number of tokens, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from patchmerger.costs.counting import flops_of
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings
from patchmerger.studies.settings import Grid
from patchmerger.studies.variants import build_bare
from patchmerger.training.settings import Recipe

PLAIN = "plain"
# Settings that a grid may vary beside block and number of tokens, and what the names of cells call them.
OPTIONS = {"norm": "norm", "scale": "scale", "logit_std": "logit-std"}


@dataclass(frozen=True)
class Cell:
    """One merger, or several, to be trained, under the name of their folder.

    ``options`` are those of the grid's settings that vary beside block and number of tokens; ``None`` for a cell that
    is not in the grid.
    """

    name: str
    merge: MergeSettings
    options: dict[str, Any] | None


def grid_cells(grid: Grid, merge: MergeSettings, plain: Recipe) -> list[Cell]:
    """Every combination of the values, and further cells.

    Args:
        grid: The values.
        merge: All that the grid does not vary.
        plain: The recipe of the plain model, which says how many blocks there are.

    Raises:
        ValueError: A further cell by the name of one that is there already.
    """
    values: dict[str, Sequence[Any]] = {"after": grid.after or _quarters(plain), "num_tokens": grid.num_tokens}
    values |= {name: getattr(grid, name) for name in OPTIONS if getattr(grid, name)}
    cells = []
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = f"after-{chosen['after']}-tokens-{chosen['num_tokens']}"
        varied = {option: chosen[option] for option in OPTIONS if option in chosen}
        name += "".join(f"-{OPTIONS[option]}-{value}" for option, value in varied.items())
        cells.append(Cell(name, replace(merge, **chosen), varied))
    names = {PLAIN, *(cell.name for cell in cells)}
    for name, own in grid.further.items():
        if name in names:
            raise ValueError(f"further names a cell {name!r}, which there is already: take another name")
        cells.append(Cell(name, own, None))
    return cells


def _quarters(plain: Recipe) -> list[int]:
    """A quarter, half and three quarters of the depth."""
    depth = len(build_bare(plain).blocks)  # type: ignore[arg-type]
    return sorted({max(1, depth * quarters // 4) for quarters in (1, 2, 3)} & set(range(1, depth)))


def check_cells(cells: Sequence[Cell], plain: Recipe, num_classes: int) -> dict[str, int]:
    """Build each cell, without weights: FLOPs of one image by name, those of the plain model too.

    Raises:
        ValueError: Cells that cannot be built, or would merge nothing: all of them, each with the reason.
    """
    flops = {PLAIN: flops_of(build_bare(plain, num_classes=num_classes))}
    wrong = []
    for cell in cells:
        try:
            merged = build_bare(replace(plain, merge=cell.merge), num_classes=num_classes)
            for merger in mergers(merged):
                arriving = merger.tokens_before and merger.tokens_before - merger.num_kept_prefix_tokens
                if arriving is not None and merger.num_tokens >= arriving:
                    raise ValueError(
                        f"num_tokens ({merger.num_tokens}) after block {merger.after} merges nothing: {arriving} "
                        "tokens arrive"
                    )
            flops[cell.name] = flops_of(merged)
        except ValueError as error:
            wrong.append(f"{cell.name}: {error}")
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(cells)} cells cannot be trained; nothing was: {'; '.join(wrong)}")
    return flops
