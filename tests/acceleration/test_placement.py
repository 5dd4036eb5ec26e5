"""Where to merge in a trained model: the latest placement that reaches the wanted speed-up."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from conftest import make_vit
from patchmerger import cost, insert, mergers
from patchmerger.acceleration.placement import candidate_placements, choose_placement, slower_but_safer
from patchmerger.acceleration.settings import PlacementSettings

pytestmark = pytest.mark.usefixtures("one_thread")
DEEP = {"img_size": 64, "patch_size": 8, "depth": 8}


def choose(**settings):
    return choose_placement(make_vit(**DEEP), PlacementSettings(**settings))


def predicted(after, num_tokens):
    return cost(insert(make_vit(**DEEP), num_tokens, after)).speedup


def test_the_latest_place_and_the_most_tokens_that_reach_it():
    place = choose(speedup=1.5)
    assert place.predicted == pytest.approx(predicted(place.after, place.num_tokens))
    assert place.predicted >= 1.5
    assert predicted(place.after + 1, 8) < 1.5
    assert predicted(place.after, place.num_tokens + 4) < 1.5


def test_a_placement_can_be_given_in_full_or_in_part():
    assert choose(after=2, num_tokens=5).predicted == pytest.approx(predicted(2, 5))
    assert (choose(after=3).num_tokens, choose().wanted) == (8, 2.0)
    assert choose(speedup=1.5, num_tokens=3).num_tokens == 3


def test_a_method_that_works_inside_a_block_has_its_own_cost_in_the_block_after():
    found = choose(speedup=1.5, num_tokens=8, reducer="topk")
    for place in (found, choose(after=found.after, num_tokens=8, reducer="topk")):
        student = place.merged(make_vit(**DEEP), "random")
        assert (mergers(student)[0].after, place.reducer) == (found.after + 1, "topk")
        assert place.predicted == pytest.approx(cost(student).speedup)
    assert 1.5 <= found.predicted < predicted(found.after, 8)
    later, _ = slower_but_safer(make_vit(**DEEP), found)
    assert f"{cost(insert(make_vit(**DEEP), 8, found.after + 2, reducer='topk')).speedup:.2f}×" in later


def test_a_measurement_can_decide(monkeypatch):
    def slower(models, _):  # every model attains its prediction less an eighth
        return {name: SimpleNamespace(speedup=cost(model).speedup / 1.12) for name, model in models.items()}

    monkeypatch.setattr("patchmerger.acceleration.placement.measure_speed", slower)
    place = choose(speedup=1.5, measure=True)
    assert place.measured >= 1.5
    assert place.measured == pytest.approx(place.predicted / 1.12)
    assert place.predicted > choose(speedup=1.5).predicted
    with pytest.raises(ValueError, match=r"speedup \(3.7\) is more than merging was measured to save here: .*× with"):
        choose(speedup=3.7, measure=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedup": 30.0}, r"speedup \(30\) is more than merging saves .* the nearest that can be had is"),
        ({"speedup": 2.0, "after": 3}, r"speedup \(2\) and after \(3\) both say where"),
        ({"after": 8}, r"after \(8\) must be a block from 1 to 7"),
        ({"speedup": 0.5}, r"speedup \(0.5\) must be above 1"),
        ({"after": 0}, r"after \(0\) must be at least 1"),
        ({"after": 2, "num_tokens": 64}, r"num_tokens \(64\) must be from 1 to 63"),
    ],
)
def test_what_cannot_be_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(**arguments)


def test_safer_places_are_named_with_their_speed():
    model = make_vit(**DEEP)
    later, more = slower_but_safer(model, choose(after=2, num_tokens=8))
    assert f"--after 3 --num_tokens 8: {predicted(3, 8):.2f}×" in later
    assert f"--after 2 --num_tokens 16: {predicted(2, 16):.2f}×" in more
    assert slower_but_safer(model, choose(after=7, num_tokens=40)) == []


def test_candidates_are_earlier_with_more_tokens():
    found = candidate_placements(make_vit(**DEEP), PlacementSettings(1.3), 3)
    assert len(found) > 1
    assert found[0] == choose(speedup=1.3)
    for later, earlier in pairwise(found):
        assert (earlier.after, -earlier.num_tokens) < (later.after, -later.num_tokens)
        assert earlier.predicted >= 1.3


@pytest.mark.parametrize(("other", "named"), [({"after": 2}, r"after \(2\)"), ({"measure": True}, "measure")])
def test_one_way_chooses_the_placement(other, named):
    with pytest.raises(ValueError, match=rf"compare \('recovered'\) and {named}"):
        PlacementSettings(compare="recovered", **other)
    with pytest.raises(ValueError, match=rf"candidates \(2\) and {named}"):
        PlacementSettings(candidates=2, **other)
    PlacementSettings(candidates=1, **other)
