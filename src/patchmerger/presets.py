"""Settings of a PatchMerger that have a name."""

from __future__ import annotations

import math
from typing import Any

from patchmerger.merger import init_with_logit_std

PRESETS: dict[str, str] = {
    "default": "PatchMerger's own arguments: raw values, normalised scores, no scale; W ~ N(0, 1/dim)",
    "paper": "the equation as printed, Y = softmax(W Xᵀ) X, with one X, layer-normalised, in both places; no scale",
    "vit-pytorch": "vit-pytorch's PatchMerger: scores and values normalised, scale dim**-0.5, W ~ N(0, 1)",
    "mean": "starts as average pooling: W near zero, so that all tokens weigh alike at first",
    "located": "each query has a place and a width in the image, learned, from a grid; W near zero (not in the paper)",
    "scratch": "located, from rows across the image, four heads with queries of their own: for training from scratch",
}
"""The named settings and what each one means; :func:`preset` gives their arguments."""


def preset(name: str, dim: int) -> dict[str, Any]:
    """Arguments of a named setting, for :class:`~patchmerger.PatchMerger` and ``insert`` alike.

    Args:
        name: One of :data:`PRESETS`: ``"default"``, ``"paper"``, ``"vit-pytorch"``, ``"mean"``, ``"located"``,
            ``"scratch"``.
        dim: Features of a token; the scale of some settings depends on it.

    Returns:
        The keyword arguments ``norm``, ``scale``, ``init`` and ``prior``, and ``num_heads`` where there are several.

    Raises:
        ValueError: An unknown ``name``.

    Example::

        insert(model, num_tokens=8, **preset("paper", dim=model.embed_dim))
    """
    if name == "default":
        return {"norm": "scores", "scale": 1.0, "init": None, "prior": None}
    if name == "paper":
        return {"norm": "both", "scale": 1.0, "init": None, "prior": None}
    if name == "vit-pytorch":
        return {"norm": "both", "scale": dim**-0.5, "init": None, "prior": None}
    if name == "mean":
        return {"norm": "scores", "scale": 1.0, "init": init_with_logit_std(0.02), "prior": None}
    if name == "located":
        return {"norm": "scores", "scale": 1.0, "init": init_with_logit_std(0.02), "prior": "grid"}
    if name == "scratch":
        return preset("located", dim) | {"prior": "rows", "num_heads": math.gcd(dim, 4)}
    raise ValueError(f"preset ({name!r}) must be one of {', '.join(map(repr, PRESETS))}")
