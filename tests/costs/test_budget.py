"""Placements that meet a budget: none that another beats, and the nearest where there is none."""

from itertools import combinations

import pytest

from conftest import make_vit
from patchmerger.costs.budget import flops_within, meeting, placements_within
from patchmerger.costs.counting import on_meta
from patchmerger.costs.placements import PlacementCosts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mergers", [1, 2])
@pytest.mark.parametrize("speedup", [1.2, 2.0])
def test_none_is_listed_to_which_another_is_preferable(mergers, speedup):
    costs = PlacementCosts(on_meta(make_vit(depth=6)), None)
    counts, budget = (8, 4, 2), costs.cost.flops / speedup
    everything = [
        costs.placement(after, tokens)
        for tokens in combinations(counts, mergers)
        for after in combinations(range(1, 6), mergers)
    ]
    fitting = [p for p in everything if p.flops <= budget]
    listed = placements_within(costs, mergers, counts, budget)
    assert listed
    assert all(p.flops <= budget and p.speedup >= speedup for p in listed)
    assert not any(a.keeps_more(b) for a in listed for b in listed)
    assert [p.after for p in listed] == sorted((p.after for p in listed), reverse=True)
    for p in fitting:
        would_do = mergers == 2 and any(
            costs.flops([a], [t]) <= budget for a, t in zip(p.after, p.num_tokens, strict=True)
        )
        assert would_do or p in listed or any(other.keeps_more(p) for other in listed)


def test_a_budget_is_that_of_a_speedup_or_of_gflops():
    costs = PlacementCosts(on_meta(make_vit(depth=6)), None)
    assert flops_within(costs, 2.0, None) == costs.cost.flops / 2
    assert flops_within(costs, None, 0.5) == 0.5e9
    found = meeting(costs, "small", 1, [8, 4], speedup=1.2)
    assert found == placements_within(costs, 1, [8, 4], costs.cost.flops / 1.2)
    with pytest.raises(ValueError, match=r"^speedup \(50\).*small.*after=1"):
        meeting(costs, "small", 1, [8, 4], speedup=50)
    with pytest.raises(ValueError, match=r"^gflops \(9\).*small"):
        meeting(costs, "small", 1, [8, 4], gflops=9)
