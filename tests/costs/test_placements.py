"""Costs of placements, against those of models with mergers in these very places."""

from itertools import combinations

import pytest
import timm
from torch import nn

from conftest import SIZE, make_vit
from patchmerger.costs.counting import count_parts, on_meta
from patchmerger.costs.model_cost import cost
from patchmerger.costs.placements import Placement, PlacementCosts
from patchmerger.hosts import UnsupportedModelError
from patchmerger.hosts.example_inputs import fit_to_size
from patchmerger.insertion import insert
from patchmerger.reducers.names import ReducerName
from patchmerger.runs.meta_device import meta_device

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = ["attention pooling", "registers, average pooling", "distilled", "differential blocks"]
OTHERS = {
    "vit_small_patch16_rope_224": None,
    "vit_small_patch16_rope_mixed_224": None,
    "vit_relpos_small_patch16_224": "drop",
}


def check(model: nn.Module, image_size: int | None = None, reducer: ReducerName = "patchmerger") -> None:
    """Places of one merger and of two, each against the model itself."""
    costs = PlacementCosts(on_meta(model), image_size, reducer=reducer)
    for number, tokens in ((1, (9,)), (2, (9, 2))):
        for after in combinations(range(1, costs.depth), number):
            merged = costs.placement(after, tokens).apply(on_meta(model))
            size = None if image_size is None else (image_size, image_size)
            counted = sum(part.flops for part in count_parts(fit_to_size(merged, size), size))
            assert costs.flops(after, tokens) == counted, (after, tokens)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_vits(name):
    check(make_vit(name, depth=3))


@pytest.mark.parametrize("architecture", OTHERS)
def test_other_families(architecture):
    with meta_device():
        model = timm.create_model(architecture, **SIZE | {"depth": 3})
    check(model)
    assert PlacementCosts(model, None).positions == OTHERS[architecture]


def test_another_image_size():
    check(make_vit(), image_size=64)
    assert PlacementCosts(on_meta(make_vit()), 64).num_patches == 16  # insert counts on the model's own size


def test_blocks_that_are_not_alike():
    model = make_vit()
    for index, width in enumerate((16, 48, 24)):
        model.blocks[index].mlp.fc1 = nn.Linear(32, width)
        model.blocks[index].mlp.fc2 = nn.Linear(width, 32)
    check(model)
    with meta_device():
        rotary = timm.create_model("vit_small_patch16_rope_224", **SIZE | {"depth": 3})
    rotary.blocks[2].mlp.fc1 = nn.Linear(32, 8, device="meta")
    rotary.blocks[2].mlp.fc2 = nn.Linear(8, 32, device="meta")
    check(rotary)


@pytest.mark.parametrize("reducer", ["tome", "dpcknn"])
def test_other_methods_have_their_own_cost(reducer):
    check(make_vit("registers, average pooling", depth=3), reducer=reducer)


def test_two_blocks():
    check(make_vit(depth=2))


def test_a_model_that_takes_no_merger():
    with pytest.raises(UnsupportedModelError, match="ResNet cannot take a merger"):
        PlacementCosts(timm.create_model("resnet18"), None)


def test_the_line_does_what_it_says():
    import patchmerger

    for placement in (
        Placement((2,), (4,), 1, 1.0),
        Placement((1, 3), (9, 4), 1, 1.0),
        Placement((3,), (2,), 1, 1.0, reducer="tome"),
        Placement((2,), (4,), 1, 1.0, "drop"),
    ):
        architecture = "vit_relpos_small_patch16_224" if placement.positions else "vit_tiny_patch16_224"
        model, other = (timm.create_model(architecture, **SIZE) for _ in range(2))
        exec(placement.line, {"patchmerger": patchmerger, "model": model})
        placement.apply(other)
        found = [(m.after, m.num_tokens, m.positions) for m in patchmerger.mergers(model)]
        assert found == [(m.after, m.num_tokens, m.positions) for m in patchmerger.mergers(other)]
        assert [m[0] for m in found] == list(placement.after)
    assert placement.line == 'patchmerger.insert(model, num_tokens=4, after=2, positions="drop")'


def test_insert_is_the_reference():
    model = on_meta(make_vit())
    assert PlacementCosts(model, None).flops([2], [4]) == cost(insert(on_meta(make_vit()), 4, 2)).flops
