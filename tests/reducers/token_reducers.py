"""The reducers that need the tokens alone (or their places), each made small, for tests of what holds for all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from patchmerger.prior import grid_positions
from patchmerger.reducers import ATC, DPCKNN, FixedPattern, KMedoids, RandomDrop, Reducer, Sinkhorn, SiT, TokenLearner

DIM = 6
GRID = (4, 5)
NUM_PATCHES = GRID[0] * GRID[1]

MAKE: dict[str, Callable[[int], Reducer]] = {
    "tokenlearner": lambda m: TokenLearner(m, DIM, hidden_dim=4),
    "sit": lambda m: SiT(m, DIM),
    "sinkhorn": lambda m: Sinkhorn(m, DIM, epsilon=0.2),
    "kmedoids": KMedoids,
    "dpcknn": lambda m: DPCKNN(m, DIM, num_neighbors=3),
    "atc": ATC,
    "atc single": lambda m: ATC(m, linkage="single"),
    "atc complete": lambda m: ATC(m, linkage="complete"),
    "fixed-l1": lambda m: FixedPattern(m, "l1"),
    "fixed-l2": FixedPattern,
    "fixed-linf": lambda m: FixedPattern(m, "linf"),
    "random": RandomDrop,
}
SOFT = ("tokenlearner", "sit", "sinkhorn")
CLUSTERS = ("dpcknn", "atc", "atc single", "atc complete")
KEPT = ("kmedoids", "fixed-l1", "fixed-l2", "fixed-linf", "random")


def make(name: str, num_tokens: int, *, seed: int = 0) -> Reducer:
    """A reducer in float64 and evaluation, whose parameters are drawn."""
    reducer = MAKE[name](num_tokens).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in reducer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return reducer


def tokens(batch: int = 3, number: int = NUM_PATCHES, *, seed: int = 1) -> Tensor:
    """Tokens (B, N, D) in float64, with something in common and one large feature, as trained models have."""
    x = torch.randn(batch, number, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[..., 0] += 5
    return x


def places(reducer: Reducer) -> dict[str, Any]:
    """The positions, for a reducer that must be given them."""
    return {"positions": grid_positions(GRID)} if "positions" in reducer.needs else {}
