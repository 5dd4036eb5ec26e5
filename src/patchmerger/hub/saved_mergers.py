"""The mergers of a saved model, under our key in its ``config.json``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from patchmerger.hosts import find_host
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.inserted import InsertedMerger, mergers
from patchmerger.insertion import insert
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.options import Norm, Positions, Prefix, Prior
from patchmerger.merger import PatchMerger
from patchmerger.reducers import AveragePool

KEY = "patchmerger"
SCHEMA_VERSION = 2
"""1 knew no positions. A folder bears the lowest version that says all of it, so that older patchmergers read it."""


@dataclass(frozen=True)
class SavedMerger:
    """A merger as the config keeps it.

    Attributes:
        after: The block that it stands after, counted from 1.
        num_tokens: Tokens it gives, M.
        prefix: Whether prefix tokens stay as they are (``"keep"``) or are merged too (``"merge"``).
        reducer: ``"PatchMerger"`` or ``"AveragePool"``.
        norm: Of a PatchMerger; else ``None``.
        scale: Of a PatchMerger; else ``None``.
        prior: Of a PatchMerger with located queries; else ``None``.
        eps: Of the norm of a PatchMerger; ``None`` where it has none.
        positions: What becomes of positions after it; ``None`` where the blocks are given none.
    """

    after: int
    num_tokens: int
    prefix: Prefix
    reducer: Literal["PatchMerger", "AveragePool"]
    norm: Norm | None = None
    scale: float | None = None
    prior: Prior | None = None
    eps: float | None = None
    positions: Positions | None = None


def write_mergers(model: nn.Module) -> dict[str, Any] | None:
    """What is kept of the mergers in a model; ``None`` for a model without.

    Raises:
        ValueError: A reducer is not of this library and could not be built again.
    """
    # A model that could not hold a merger can be saved too.
    if not any(is_merging(module) for module in model.modules()):
        return None
    num_prefix_tokens = find_host(model).num_prefix_tokens
    kept = [asdict(_describe(merger, num_prefix_tokens)) for merger in mergers(model)]
    if all(merger["positions"] is None for merger in kept):
        for merger in kept:
            del merger["positions"]
        return {"schema_version": 1, "mergers": kept}
    return {"schema_version": SCHEMA_VERSION, "mergers": kept}


def read_mergers(config: dict[str, Any], folder: Path) -> tuple[SavedMerger, ...]:
    """The mergers in a config; one without our key is a plain model's."""
    path = folder / CONFIG_NAME
    ours = config.get(KEY, {"schema_version": SCHEMA_VERSION, "mergers": []})
    version = ours.get("schema_version") if isinstance(ours, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has no valid schema_version under {KEY!r} ({version!r})")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, but this patchmerger knows up to {SCHEMA_VERSION}: upgrade it"
        )
    try:
        return tuple(SavedMerger(**merger) for merger in ours["mergers"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} describes its mergers in a way that is not understood: {error}") from error


def insert_mergers(model: nn.Module, saved: Iterable[SavedMerger]) -> None:
    """Put the mergers that a config describes into ``model``, in place."""
    for merger in saved:
        _insert(model, merger)


def _describe(merger: InsertedMerger, num_prefix_tokens: int) -> SavedMerger:
    prefix: Prefix = "keep" if merger.num_kept_prefix_tokens == num_prefix_tokens else "merge"
    module, place = merger.module, (merger.after, merger.num_tokens, prefix)
    if type(module) is AveragePool:
        return SavedMerger(*place, reducer="AveragePool", positions=merger.positions)
    if type(module) is not PatchMerger:
        raise ValueError(
            f"{merger.name} is a {type(module).__name__}: only PatchMerger and AveragePool can be saved, for no other "
            "reducer could be built again"
        )
    return SavedMerger(
        *place,
        reducer="PatchMerger",
        norm=module.norm_mode,
        scale=module.scale,
        prior=None if module.prior is None else "grid",
        eps=None if module.norm is None else module.norm.eps,
        positions=merger.positions,
    )


def _insert(model: nn.Module, saved: SavedMerger) -> None:
    place: dict[str, Any] = {"num_tokens": saved.num_tokens, "after": saved.after, "prefix": saved.prefix}
    if saved.positions is not None:
        place["positions"] = saved.positions
    if saved.reducer == "AveragePool":
        insert(model, **place, reducer=AveragePool(saved.num_tokens))
        return
    if saved.reducer != "PatchMerger" or saved.norm is None or saved.scale is None:
        raise ValueError(f"the merger after block {saved.after} is not understood: {saved}")
    insert(model, **place, norm=saved.norm, scale=saved.scale, prior=saved.prior)
    module = next(cast(PatchMerger, m.module) for m in mergers(model) if m.after == saved.after)
    if module.norm is not None and saved.eps is not None:
        module.norm.eps = saved.eps
