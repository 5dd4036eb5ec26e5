"""The cells of a sweep: mergers by place and number of tokens, checked before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from patchmerger.costs.model_cost import cost
from patchmerger.inserted import mergers
from patchmerger.mechanism.options import Norm
from patchmerger.models.build import build_model
from patchmerger.models.settings import MergeSettings, ModelSettings

PLAIN = "plain"
# Settings that a grid may vary beside place and number of tokens, and their short names.
OPTIONS = {"norm": "norm", "scale": "scale", "logit_std": "logit-std"}


@dataclass(frozen=True)
class Cell:
    """One merger, or several, to be trained.

    Attributes:
        name: Its name, and that of its folder.
        merge: What is merged where.
        options: Those of the grid's settings that vary beside place and number of tokens; ``None`` for a cell that is
            not in the grid.
    """

    name: str
    merge: MergeSettings
    options: dict[str, Any] | None


def grid(
    merge: MergeSettings,
    *,
    after: Sequence[int],
    num_tokens: Sequence[int],
    norm: Sequence[Norm] = (),
    scale: Sequence[float] = (),
    logit_std: Sequence[float] = (),
    further: Mapping[str, MergeSettings] | None = None,
) -> list[Cell]:
    """Every combination of the values, and further cells.

    Args:
        merge: All that the grid does not vary.
        after: Blocks to merge after, counted from 1.
        num_tokens: Numbers of tokens that go on, M.
        norm: Where to normalise; as ``merge`` has it if empty.
        scale: Factors on the scores, likewise.
        logit_std: Standard deviations of the scores at the start, likewise.
        further: Cells with a merger of their own, by name.

    Raises:
        ValueError: No value for a place or a number of tokens, one given twice, or a name that cannot be that of a
            folder.
    """
    plain = MergeSettings()
    if (merge.after, merge.num_tokens) != (plain.after, plain.num_tokens):
        raise ValueError("merge.after and merge.num_tokens are what a sweep varies: give after and num_tokens")
    values: dict[str, Sequence[Any]] = {"after": after, "num_tokens": num_tokens}
    options = {"norm": norm, "scale": scale, "logit_std": logit_std}
    for name, given in {**values, **options}.items():
        if len(set(given)) < len(given):
            raise ValueError(f"{name} ({list(given)}) names a value twice")
        if name in values and not given:
            raise ValueError(f"{name} is empty: give at least one value")
    values |= {name: given for name, given in options.items() if given}
    cells = []
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = f"after-{chosen['after']}-tokens-{chosen['num_tokens']}"
        name += "".join(f"-{short}-{chosen[option]}" for option, short in OPTIONS.items() if option in chosen)
        varied = {option: chosen[option] for option in OPTIONS if option in chosen}
        cells.append(Cell(name, replace(merge, **chosen), varied))
    names = {PLAIN, *(cell.name for cell in cells)}
    for name, own in (further or {}).items():
        if name in names:
            raise ValueError(f"further names a cell {name!r}, which there is already: take another name")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"further: the name {name!r} must be letters, digits, '-', '_' and '.', as of a folder")
        cells.append(Cell(name, own, None))
    return cells


def check_cells(cells: Sequence[Cell], model: ModelSettings, num_classes: int) -> dict[str, int]:
    """Build each cell, without weights.

    Args:
        cells: The cells.
        model: The plain model; its name must be given.
        num_classes: Outputs of the head.

    Returns:
        FLOPs of one image, by name; those of the plain model too.

    Raises:
        ValueError: Cells that cannot be built, or would merge nothing: all of them, each with the reason.
    """
    bare = replace(model, pretrained=False)
    with torch.device("meta"):
        flops = {PLAIN: cost(build_model(bare, num_classes=num_classes)).flops}
    wrong = []
    for cell in cells:
        try:
            with torch.device("meta"):
                merged = build_model(bare, cell.merge, num_classes=num_classes)
            for merger in mergers(merged):
                arriving = merger.tokens_before and merger.tokens_before - merger.num_kept_prefix_tokens
                if arriving is not None and merger.num_tokens >= arriving:
                    raise ValueError(
                        f"num_tokens ({merger.num_tokens}) after block {merger.after} merges nothing: {arriving} "
                        "tokens arrive"
                    )
            flops[cell.name] = cost(merged).flops
        except ValueError as error:
            wrong.append(f"{cell.name}: {error}")
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"{len(wrong)} of {len(cells)} cells cannot be trained; nothing was:\n  {listed}")
    return flops
