"""What a study of accelerations puts into a trained model: mergers, what may stand in their place, and controls."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import Tensor, nn

from patchmerger.acceleration.placement import ChosenPlacement
from patchmerger.acceleration.query_initialisation import calibrate, recommended_query_init
from patchmerger.acceleration.settings import QueryInit, RecoverySettings, Scope
from patchmerger.costs.counting import count_parts, flops_of, on_meta
from patchmerger.costs.model_cost import cost
from patchmerger.hosts import block_names, find_host
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import insert
from patchmerger.reducers.build import all_work_inside
from patchmerger.reducers.names import ReducerName
from patchmerger.runs.random_state import seeded
from patchmerger.studies.staged_placement import StagedPlacement

CONTROLS = {
    "plain": "the plain model, trained on with the labels alone, for as long",
    "cut": "the plain model without its last blocks, as few of them as leave no fewer FLOPs than the merged model has",
    "regions": "averages over soft regions of the image: what located queries begin as, with nothing in them learned",
}
"""Methods that are no merger, in words."""

REDUCERS = {
    "random-drop" if name == "random" else name: name for name in get_args(ReducerName) if name != "patchmerger"
}
"""Methods of ``patchmerger.reducers``; there "random" drops tokens, here it stands for random queries."""


def known_methods() -> tuple[str, ...]:
    """The names of all methods: controls, query initialisations of a PatchMerger, and reducers in its place."""
    return (*CONTROLS, *get_args(QueryInit), *REDUCERS)


@dataclass(frozen=True)
class Method:
    """One method in a trained model.

    Attributes:
        name: Its name.
        net: The plain model, which is not changed.
        placement: Where it merges.
    """

    name: str
    net: nn.Module
    placement: ChosenPlacement | StagedPlacement

    def student(self, images: Tensor, *, recovers: bool, seed: int) -> nn.Module:
        """The model to recover: queries come from normalised ``images`` (n, 3, S, S), what is random from ``seed``."""
        place, name = self.placement, self.name
        if name == "plain":
            return copy.deepcopy(self.net)
        if name == "cut":
            return cut(self.net, self.net_blocks)
        if name in REDUCERS:
            counts = place.num_tokens
            with seeded(seed):
                return _reduced(copy.deepcopy(self.net), name, place, [counts] if isinstance(counts, int) else counts)
        grid = find_host(self.net).grid is not None
        init: Any = recommended_query_init(recovers=recovers, grid=grid) if name == "best" else name
        student = place.merged(self.net, "located" if name == "regions" else init)
        calibrate(student.to(images.device), images, method="located" if name == "regions" else init, seed=seed)
        if name == "regions":
            for merger in mergers(student):
                nn.init.zeros_(merger.module.weight)  # type: ignore[arg-type]
                merger.module.requires_grad_(False)
        return student.cpu()

    def recovery(self, recovery: RecoverySettings) -> RecoverySettings:
        """How it is recovered: as all, but for what its lack of a merger asks for."""
        if self.name == "plain":
            kept = recovery.frozen_blocks == 0
            scope: Scope = recovery.scope if kept else "all"
            return replace(recovery, scope=scope, teacher_weight=0.0, feature_weight=0.0, label_weight=1.0)
        if self.name == "cut" and recovery.scope != "all":
            first = min(_blocks(self.placement))
            frozen = first if recovery.frozen_blocks is None else recovery.frozen_blocks
            return replace(recovery, frozen_blocks=min(frozen, self.net_blocks - 1))
        return recovery

    @property
    def net_blocks(self) -> int:
        """Blocks of the plain model that leave no fewer FLOPs than the merged one has."""
        return blocks_within(self.net, self.placement.predicted)


def at_equal_flops(name: str, net: nn.Module, placement: ChosenPlacement) -> ChosenPlacement:
    """The placement with as many tokens as bring a method nearest to the FLOPs that the merger has there.

    A method that works inside a block saves less of that block than one after the block before, so that it gets fewer
    tokens; what else methods cost is rarely worth a token. Methods that are no reducers stay as they are.
    """
    if name not in REDUCERS:
        return placement
    plain = on_meta(net)
    target = flops_of(plain) / placement.predicted
    tried: dict[int, float] = {}
    count = placement.num_tokens
    while count not in tried and len(tried) < 4:
        parts = count_parts(_reduced(copy.deepcopy(plain), name, placement, [count]))
        tried[count] = sum(part.flops for part in parts)
        merges = next(i for i, part in enumerate(parts) if part.name.endswith(".merger"))
        of_a_token = sum(part.flops / part.tokens_in for part in parts[merges + 1 : -1])
        count = max(1, count - round((tried[count] - target) / of_a_token))
    return replace(placement, num_tokens=min(tried, key=lambda tokens: abs(tried[tokens] - target)))


def _blocks(place: ChosenPlacement | StagedPlacement) -> tuple[int, ...]:
    """The blocks that it merges after."""
    return (place.after,) if isinstance(place.after, int) else place.after


def _reduced(
    net: nn.Module, name: str, place: ChosenPlacement | StagedPlacement, num_tokens: Sequence[int]
) -> nn.Module:
    """``net`` with a reducer; one that works inside a block does so in the next one, so that all share the front."""
    reducer = REDUCERS[name]
    after = [block + (1 if all_work_inside(reducer) else 0) for block in _blocks(place)]
    return insert(net, num_tokens, after, positions=place.positions, reducer=reducer)


def cut(net: nn.Module, blocks: int) -> nn.Module:
    """A copy of ``net`` with its first ``blocks`` blocks alone."""
    shorter = copy.deepcopy(net)
    container = shorter.get_submodule(block_names(shorter, find_host(shorter))[0].rpartition(".")[0])
    del container[blocks:]  # type: ignore[operator]
    return shorter


def blocks_within(net: nn.Module, speedup: float) -> int:
    """The fewest first blocks of a model that make it no faster, by FLOPs, than ``speedup`` times."""
    whole = cost(net)
    flops = {part.name: part.flops for part in whole.parts}
    names = block_names(net, find_host(net))
    left = whole.flops
    for kept in range(len(names) - 1, 0, -1):
        left -= flops[names[kept]]
        if left * speedup < whole.flops:
            return kept + 1
    return 1
