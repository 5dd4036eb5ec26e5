"""How tokens are placed in an image, as settings that are checked before anything is changed; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from patchmerger.runs.checks import check_choices, check_count

Sampler: TypeAlias = Literal[
    "grid", "center", "subset", "uniform", "gaussian", "sobol", "edges", "saliency", "learned", "given"
]
"""How positions are chosen:

- ``"grid"``: the middles of N tiles that cover the image; with as many tokens as patches, the patches themselves.
- ``"center"``: the same tiles drawn towards the middle of the image, where ``std`` says how far.
- ``"subset"``: patches of the grid, some of which are dropped at random: what placing is compared with.
- ``"uniform"``: independent and uniform.
- ``"gaussian"``: independent, from a normal distribution around the middle of the image that ends at its edges.
- ``"sobol"``: a scrambled Sobol sequence, which covers the image more evenly than independent positions do.
- ``"edges"``: a Sobol sequence drawn to where the image has edges (the magnitude of its gradient).
- ``"saliency"``: a Sobol sequence drawn to where a map is high that the caller gives for each batch, by
  :func:`~patchmerger.placing.saliency_given`.
- ``"learned"``: the tiles of ``"grid"``, each with an offset that is trained with the model.
- ``"given"``: positions that the caller gives, once for all images or for each batch by
  :func:`~patchmerger.placing.positions_given`.
"""


@dataclass(frozen=True)
class PlacingSettings:
    """How many tokens are placed, where, and of what size.

    Args:
        num_tokens: Tokens of an image, N.
        sampler: How their positions are chosen.
        window: Height and width in pixels of what a token sees; those of a patch if not given. Another size is sampled
            as many times as a patch has pixels.
        seed: Fixes the positions of the random samplers and of Sobol's sequence in evaluation.
        std: Standard deviation of "center" and "gaussian", as a share of the image.
        uniform_share: Share of the tokens that "edges" and "saliency" spread over the whole image.

    Raises:
        ValueError: Settings with which no token can be placed.
    """

    num_tokens: int = 49
    sampler: Sampler = "sobol"
    window: tuple[int, int] | None = None
    seed: int = 0
    std: float = 0.25
    uniform_share: float = 0.25

    @property
    def in_words(self) -> str:
        """Such as "24 tokens by 'sobol'"."""
        window = "" if self.window is None else f", windows of {self.window[0]} × {self.window[1]} pixels"
        return f"{self.num_tokens} tokens by {self.sampler!r}{window}"

    def __post_init__(self) -> None:
        check_count("num_tokens", self.num_tokens)
        check_choices(self)
        if self.window is not None and (len(self.window) != 2 or any(type(s) is not int or s < 1 for s in self.window)):
            raise ValueError(f"window ({self.window!r}) must be a height and a width of at least one pixel")
        check_count("seed", self.seed, at_least=0)
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"std ({self.std!r}) must be above 0; a quarter of the image is 0.25")
        if not 0 <= self.uniform_share <= 1:
            raise ValueError(f"uniform_share ({self.uniform_share!r}) must be from 0 to 1")
