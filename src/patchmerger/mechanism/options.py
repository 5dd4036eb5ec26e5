"""What ``insert`` offers and why it refuses, as types; without torch, so that settings can use them."""

from typing import Literal, TypeAlias

Positions: TypeAlias = Literal["centroid", "drop"]
"""What merged tokens have in place of positions: the centroid of their patches, or nothing."""

Prefix: TypeAlias = Literal["keep", "merge"]
"""What becomes of the prefix tokens: they stay as they are, or are merged with the patches."""

Norm: TypeAlias = Literal["scores", "both", "none"]
"""What a PatchMerger normalises: the tokens for the scores, those and the mixed values, or nothing."""

RefusalKind: TypeAlias = Literal[
    "unknown", "wrapped", "changed", "not one sequence", "tied to N", "grid", "relative bias", "two merges", "attention"
]
"""Why a model cannot take a merger; see :class:`patchmerger.UnsupportedModelError`."""

Prior: TypeAlias = Literal["grid", "rows"]
"""What a PatchMerger's queries know beside content: a place and a width in the image (located queries).

They begin as the tiles of a near-square grid, ``"grid"``, or as rows across the whole image, ``"rows"``.
"""
