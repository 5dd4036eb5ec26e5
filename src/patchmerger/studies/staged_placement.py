"""Several reductions in one model, each of which keeps the same share of the tokens that reach it."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from patchmerger.acceleration.settings import QueryInit
from patchmerger.costs.counting import on_meta
from patchmerger.costs.model_cost import cost
from patchmerger.costs.placements import needed_positions
from patchmerger.hosts import find_host
from patchmerger.insertion.inserting import insert
from patchmerger.mechanism.options import Positions
from patchmerger.presets import preset


@dataclass(frozen=True)
class StagedPlacement:
    """The blocks that tokens are reduced after, and the tokens that go on after each; ``predicted`` is of PatchMergers.

    Methods that work inside a block do so in the blocks after these.
    """

    after: tuple[int, ...]
    num_tokens: tuple[int, ...]
    positions: Positions | None
    predicted: float
    keep_rate: float

    def merged(self, net: nn.Module, query_init: QueryInit) -> nn.Module:
        """A copy of ``net`` with a PatchMerger at each place; located queries have places, and W near zero."""
        settings = preset("located" if query_init == "located" else "default", find_host(net).dim)
        return insert(copy.deepcopy(net), self.num_tokens, self.after, positions=self.positions, **settings)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def staged_placement(net: nn.Module, keep_rate: float) -> StagedPlacement:
    """Reductions after a quarter, half and three quarters of the blocks, as in arXiv 2308.04657, section 4.

    Of N patches the i-th leaves ``int(N · keep_rate^i)``, and at least one.

    Raises:
        ValueError: The model has fewer than four blocks.
    """
    plain = on_meta(net)
    depth = len(find_host(plain).blocks)
    if depth < 4:
        raise ValueError(f"keep_rates ({keep_rate:g}) are for three depths, which a model of {depth} blocks has not")
    whole, positions = cost(plain), needed_positions(plain)
    after = tuple(depth * quarters // 4 for quarters in (1, 2, 3))
    counts = tuple(max(1, int(whole.parts[0].tokens_in * keep_rate**stage)) for stage in (1, 2, 3))
    flops = cost(insert(plain, counts, after, positions=positions)).flops
    return StagedPlacement(after, counts, positions, whole.flops / flops, keep_rate)
