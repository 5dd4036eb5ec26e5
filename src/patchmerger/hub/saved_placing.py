"""How the tokens of a saved model are placed, beside its mergers under our key in its ``config.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.saved_mergers import KEY, PLACING, SCHEMA_VERSION, write_mergers
from patchmerger.hub.weights import Weights
from patchmerger.placing.in_model import place_by_settings, placing_of
from patchmerger.placing.settings import PlacingSettings
from patchmerger.runs.serialisation import from_json, to_json

_POINTS = "patch_embed.placement.points"


def write_changes(model: nn.Module) -> dict[str, Any] | None:
    """What goes under our key: the mergers in a model, and how its tokens are placed; ``None`` for a plain model.

    Raises:
        ValueError: A reducer is not of this library and could not be built again.
    """
    mergers, placing = write_mergers(model), placing_of(model)
    if placing is None:
        return mergers
    return {**(mergers or {"schema_version": SCHEMA_VERSION, "mergers": []}), PLACING: to_json(placing)}


def read_placing(config: dict[str, Any], folder: Path) -> PlacingSettings | None:
    """How a config says that tokens are placed; ``None`` where they are the patches of a grid."""
    kept = config.get(KEY, {}).get(PLACING)
    if kept is None:
        return None
    try:
        return from_json(PlacingSettings, kept)
    except ValueError as error:
        raise ValueError(
            f"{folder / CONFIG_NAME} says how tokens are placed in a way that is not understood: {error}"
        ) from error


def place_as_saved(model: nn.Module, placing: PlacingSettings | None, weights: Weights) -> None:
    """Place the tokens of ``model`` as a config says, in place; their points are among the weights."""
    if placing is not None:
        place_by_settings(model, placing, weights.get(_POINTS))
