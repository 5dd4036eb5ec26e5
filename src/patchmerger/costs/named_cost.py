"""The cost of a model by its name, folder or file, merged or plain: what ``patchmerger cost`` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from patchmerger.costs.counting import on_meta
from patchmerger.costs.model_cost import Cost, cost
from patchmerger.costs.placements import needed_positions
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.placed_tokens import placed_embedding
from patchmerger.models.build import apply_merge, find_untrained
from patchmerger.models.settings import MergeSettings
from patchmerger.placing.in_model import plain_model
from patchmerger.runs.meta_device import meta_device


def cost_of(
    model: str | Path,
    merge: MergeSettings | Literal["auto"] | None = "auto",
    *,
    architecture: str | None = None,
    args: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Cost:
    """The cost of a model that is found, not given; arguments are those of ``find_model`` and :func:`cost`.

    ``merge`` is the merger to count with; ``None`` for the plain model. ``"auto"`` is the mergers that a saved model
    has, and the default merger in a plain one. ``args`` are arguments of ``timm.create_model``, for an architecture
    or a safetensors file.

    Raises:
        ValueError: The model is not known, arguments do not fit it, or it has another merger than is asked for.
        FileNotFoundError: There is no such folder or file.
        UnsupportedModelError: The model cannot take a merger.
    """
    net = on_meta(find_untrained(model, architecture=architecture, model_args=args).model)
    if mergers(net) or placed_embedding(net) is not None:
        if merge is None:
            plain_model(net)
        elif merge != "auto" and mergers(net):
            raise ValueError(f"merge asks for a merger, but model ({model}) has one: leave merge out, or save it plain")
    elif merge is not None:
        with meta_device():
            apply_merge(net, MergeSettings(positions=needed_positions(net)) if merge == "auto" else merge)
    return cost(net, image_size)
