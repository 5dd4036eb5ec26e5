"""What stands under our key in the ``config.json`` of a saved model: its mergers, and how its tokens are placed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from patchmerger.hosts import find_host
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.weights import Weights
from patchmerger.insertion.inserted import InsertedMerger, mergers
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.options import Norm, Positions, Prefix, Prior
from patchmerger.merger import PatchMerger
from patchmerger.placing.in_model import place_by_settings, placing_of
from patchmerger.placing.settings import PlacingSettings
from patchmerger.reducers.names import ReducerName, make_reducer, method_of, saved_arguments
from patchmerger.reducers.reducer import Reducer
from patchmerger.runs.serialisation import from_json, to_json

KEY = "patchmerger"
SCHEMA_VERSION = 1
_POINTS = "patch_embed.placement.points"


@dataclass(frozen=True)
class SavedMerger:
    """A merger as the config keeps it.

    Attributes:
        after: The block that it stands after, counted from 1.
        num_tokens: Tokens it gives, M.
        prefix: Whether prefix tokens stay as they are (``"keep"``) or are merged too (``"merge"``).
        reducer: The name of its method, as in ``patchmerger.reducers.METHODS``.
        norm: Of a PatchMerger; else ``None``.
        scale: Of a PatchMerger; else ``None``.
        prior: Of a PatchMerger with located queries; else ``None``.
        num_heads: Of a PatchMerger with several; else ``None``.
        eps: Of the norm of a PatchMerger; ``None`` where it has none.
        positions: What becomes of positions after it; ``None`` where the blocks are given none.
        arguments: Options of the reducer, of another method than PatchMerger.
    """

    after: int
    num_tokens: int
    prefix: Prefix
    reducer: ReducerName
    norm: Norm | None = None
    scale: float | None = None
    prior: Prior | None = None
    num_heads: int | None = None
    eps: float | None = None
    positions: Positions | None = None
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse a PatchMerger without its settings, and settings where they mean nothing."""
        said = [self.norm is not None, self.scale is not None]
        if any(said) if self.reducer != "patchmerger" else not all(said):
            raise ValueError(f"norm ({self.norm}) and scale ({self.scale}) are what a PatchMerger has, and only that")


@dataclass(frozen=True)
class SavedChanges:
    """What stands under our key: mergers, first to last, and how tokens are placed where not as the patches of a grid.

    A newer ``schema_version`` is not understood.
    """

    mergers: tuple[SavedMerger, ...]
    placing: PlacingSettings | None = None
    schema_version: int = SCHEMA_VERSION


def describe_mergers(model: nn.Module) -> tuple[SavedMerger, ...]:
    """What is kept of the mergers in a model, first to last.

    Raises:
        ValueError: A reducer is not of this library and could not be built again.
    """
    # A model that could not hold a merger can be saved too.
    if not any(is_merging(module) for module in model.modules()):
        return ()
    num_prefix_tokens = find_host(model).num_prefix_tokens
    return tuple(_describe(merger, num_prefix_tokens) for merger in mergers(model))


def write_changes(model: nn.Module) -> dict[str, Any] | None:
    """What goes under our key, as JSON has it; ``None`` for a plain model.

    Raises:
        ValueError: A reducer is not of this library and could not be built again.
    """
    changes = SavedChanges(describe_mergers(model), placing_of(model))
    if changes == SavedChanges(()):
        return None
    return {name: value for name, value in to_json(changes).items() if value is not None}


def read_changes(config: dict[str, Any], folder: Path) -> SavedChanges:
    """What a config says under our key; one without it is a plain model's."""
    if KEY not in config:
        return SavedChanges(())
    path, ours = folder / CONFIG_NAME, config[KEY]
    version = ours.get("schema_version") if isinstance(ours, dict) else None
    if type(version) is not int or version < 1:
        raise ValueError(f"{path} has no valid schema_version under {KEY!r} ({version!r})")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version}, but this patchmerger knows up to {SCHEMA_VERSION}: upgrade it"
        )
    try:
        return from_json(SavedChanges, ours)
    except ValueError as error:
        raise ValueError(f"{path} says under {KEY!r} what is not understood: {error}") from error


def make_changes(model: nn.Module, changes: SavedChanges, weights: Weights) -> None:
    """Place the tokens of a plain model and put the mergers into it that a config describes, in place.

    Among the ``weights`` are the points where tokens are placed.
    """
    if changes.placing is not None:
        place_by_settings(model, changes.placing, weights.get(_POINTS))
    insert_mergers(model, changes.mergers)


def insert_mergers(model: nn.Module, saved: Iterable[SavedMerger]) -> None:
    """Put the mergers that a config describes into ``model``, in place."""
    for merger in saved:
        place: dict[str, Any] = {"num_tokens": merger.num_tokens, "after": merger.after, "prefix": merger.prefix}
        if merger.reducer != "patchmerger" or merger.norm is None or merger.scale is None:
            insert(model, **place, positions=merger.positions, reducer=_made(model, merger))
            continue
        queries: dict[str, Any] = {"norm": merger.norm, "scale": merger.scale, "prior": merger.prior}
        insert(model, **place, positions=merger.positions, **queries, num_heads=merger.num_heads or 1)
        module = next(cast(PatchMerger, m.module) for m in mergers(model) if m.after == merger.after)
        if module.norm is not None and merger.eps is not None:
            module.norm.eps = merger.eps


def _made(model: nn.Module, saved: SavedMerger) -> nn.Module:
    """The reducer of a method, as the config describes it."""
    host, before = find_host(model), [m for m in mergers(model) if m.after < saved.after]
    num_kept = host.num_prefix_tokens if saved.prefix == "keep" else 0
    arriving = before[-1].num_tokens if before else None
    if not before and host.num_patches is not None:
        arriving = host.num_patches + host.num_prefix_tokens - num_kept
    grid = host.grid if isinstance(host.grid, tuple) and not before else None
    arguments = saved.arguments or {}
    return make_reducer(saved.reducer, saved.num_tokens, dim=host.dim, num_patches=arriving, grid=grid, **arguments)


def _describe(merger: InsertedMerger, num_prefix_tokens: int) -> SavedMerger:
    prefix: Prefix = "keep" if merger.num_kept_prefix_tokens == num_prefix_tokens else "merge"
    module, place = merger.module, (merger.after, merger.num_tokens, prefix)
    method = method_of(module)
    if isinstance(module, Reducer) and method is not None:
        return SavedMerger(*place, method, positions=merger.positions, arguments=saved_arguments(module) or None)
    if type(module) is not PatchMerger:
        raise ValueError(
            f"{merger.name} is a {type(module).__name__}: only the methods in patchmerger.reducers.METHODS can be "
            "saved, for no other reducer could be built again"
        )
    return SavedMerger(
        *place,
        reducer="patchmerger",
        norm=module.norm_mode,
        scale=module.scale,
        prior=None if module.prior is None else module.prior.layout,
        num_heads=None if module.num_heads == 1 else module.num_heads,
        eps=None if module.norm is None else module.norm.eps,
        positions=merger.positions,
    )
