"""A model of one's own: described in a few lines, refused where nobody described it, caught where that is wrong."""

import copy
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images
from hosts.own import PATCHES, WIDTH, MyRopeViT, MyViT
from patchmerger import Host, insert, mergers, register_host, remove
from patchmerger.census import check_host
from patchmerger.census.observe import NotAsDescribedError
from patchmerger.hosts import UnsupportedModelError
from patchmerger.hosts import registry as find
from patchmerger.mechanism.block_inputs import BlockInputs
from patchmerger.mechanism.rotary import Rope

pytestmark = pytest.mark.usefixtures("one_thread", "own_registry")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(find, "_registered", {})


def make(cls: type[nn.Module], **kwargs: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**kwargs).eval()


def describe(cls: type[nn.Module] = MyViT, **changed: Any) -> None:
    """Register ``cls``, rightly but for what is ``changed``; functions are called with the model."""

    @register_host(cls)
    def _(model: Any) -> Host:
        right = {"blocks": getattr(model, "layers", None) or model.blocks, "dim": WIDTH, "num_prefix_tokens": 1}
        right |= {"num_patches": PATCHES, **changed}
        return Host(
            **{name: value(model) if isinstance(value, FunctionType) else value for name, value in right.items()}
        )


def test_merged_output_equals_the_composition_by_hand(images):
    describe()
    model = make(MyViT)
    plain = copy.deepcopy(model)
    insert(model, 3)
    (found,) = mergers(model)
    assert (found.name, found.tokens_before, found.tokens_after) == ("layers.1.merger", 17, 4)
    x = plain.tokens(images)
    for number, layer in enumerate(plain.layers):
        x = layer(x)
        if number == 1:
            x = torch.cat((x[:, :1], found.module(x[:, 1:])), dim=1)
    torch.testing.assert_close(model(images), plain.head(x[:, 0]), rtol=1e-5, atol=1e-5)
    check_host(model := remove(model), images)
    assert torch.equal(model(images), plain(images))
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def describe_rope(**changed: Any) -> None:
    describe(MyRopeViT, inputs=BlockInputs(rope=Rope()), **changed)


def test_rotary_positions_follow_the_tokens(images):
    describe_rope()
    model = make(MyRopeViT)
    plain = copy.deepcopy(model)
    check_host(model, images)
    insert(model, 3)
    (found,) = mergers(model)
    assert found.positions == "centroid"
    x = plain.tokens(images)
    for block in plain.blocks[:2]:
        x = block(x, plain.table())
    merged, weights = found.module(x[:, 1:], return_weights=True)
    x = torch.cat((x[:, :1], merged), dim=1)
    for block in plain.blocks[2:]:
        x = block(x, centroid_table(weights))
    torch.testing.assert_close(model(images), plain.head(x[:, 0]), rtol=1e-5, atol=1e-5)
    without = insert(copy.deepcopy(plain), 3, positions="drop", init=found.module.weight)
    assert not torch.allclose(without(images), model(images), atol=1e-4)


def centroid_table(weights: Tensor) -> Tensor:
    """The table that :class:`MyRopeViT` would make for the centroids, from its formula."""
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    bands = torch.tensor([1.0, 0.5, 0.25, 0.125])
    places = weights @ torch.stack((row, column), dim=-1).reshape(-1, 2)  # (B, M, 2)
    phases = (places[..., None] * bands).flatten(2).repeat(1, 1, 2)[:, None]  # (B, 1, M, 16)
    return torch.cat((phases.sin(), phases.cos()), dim=-1)


def test_a_rotary_table_that_is_not_described_is_refused_when_it_comes(images):
    describe(MyRopeViT)
    model = insert(make(MyRopeViT), 3)
    with pytest.raises(ValueError, match="rope was given to a merged model, but it speaks of the tokens before"):
        model(images)


class Subclass(MyViT):
    pass


def test_what_nobody_described_is_refused():
    message = "Subclass cannot take a merger: it is not known.*if it is one, describe it with patchmerger.register_host"
    describe()
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        insert(make(Subclass))
    assert caught.value.kind == "unknown"
    assert caught.value.way_out == "if it is one, describe it with patchmerger.register_host"


def test_only_modules_are_registered():
    with pytest.raises(TypeError, match=re.escape("cls ('MyViT') must be a subclass of torch.nn.Module")):
        register_host("MyViT")


def swapped(model: MyViT) -> list[nn.Module]:
    return [model.layers[1], model.layers[0], *model.layers[2:]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"blocks": lambda m: m.layers[:2]},
            "description of MyViT must be all 4 of layers, in their order",
        ),
        ({"blocks": swapped}, "description of MyViT must be all 4 of layers, in their order"),
        (
            {"blocks": lambda m: [*copy.deepcopy(m.layers)]},
            r"blocks\[0\] of the host's desc.* no part of MyViT",
        ),
        ({"blocks": lambda m: [*m.layers, m.layers[0]]}, "a block stands in it more than once"),
        ({"dim": 32.0}, r"dim \(32.0\) of the description of MyViT must be a whole number from 1"),
        (
            {"num_prefix_tokens": -1},
            r"num_prefix_tokens \(-1\) of .* MyViT must be a whole number from 0",
        ),
        ({"num_prefix_tokens": None}, r"num_prefix_tokens \(None\) of the description of MyViT"),
        ({"num_patches": 4.0**2}, r"num_patches \(16.0\) of the description of MyViT must be a whole number from 1"),
    ],
)
def test_a_description_that_cannot_be_true_is_refused(changed, message):
    describe(**changed)
    model = make(MyViT)
    before = [(type(m), sorted(vars(m))) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        insert(model, 3)
    assert [(type(m), sorted(vars(m))) for m in model.modules()] == before


def test_a_description_must_be_a_host():
    register_host(MyViT)(lambda model: None)
    with pytest.raises(TypeError, match=r"registered for MyViT gives NoneType, not a patchmerger\.Host"):
        insert(make(MyViT))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_prefix_tokens": 0}, r"tokens \(2, 17, 32\) came to the merger, but by the description.*\(B, 16, D\)"),
        ({"num_prefix_tokens": 2}, r"tokens \(2, 17, 32\) came to the merger, but by the description.*\(B, 18, D\)"),
        ({"num_patches": 9}, r"they are \(B, 10, D\): mend num_prefix_tokens or num_patches of its Host"),
        ({"dim": 16}, r"x must be \(B, N, dim\) with dim = 16, got \(2, 16, 32\)"),
    ],
)
def test_a_wrong_description_is_caught_when_tokens_come(changed, message, images):
    describe(**changed)
    model = insert(make(MyViT), 3)
    with pytest.raises(ValueError, match=message):
        model(images)


def test_tokens_that_do_not_come_batch_first_are_caught(images):
    describe()
    model = insert(make(MyViT, batch_first=False), 3)
    with pytest.raises(ValueError, match=r"tokens \(17, 2, 32\) came to the merger, but by the description"):
        model(images)


class Wrapped(nn.Module):
    """A block whose output is not the tokens."""

    def __init__(self, block: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.block = block
        self.wrap = wrap

    def forward(self, x: Any) -> Any:
        return self.wrap(self.block(x))


@pytest.mark.parametrize(
    ("wrap", "given"),
    [
        (lambda x: {"x": x}, "dict"),
        (lambda x: [x, None], "list"),
        (lambda x: (None, x), "NoneType"),
        (lambda x: x.unflatten(1, (1, 17)), r"\(2, 1, 17, 32\)"),
    ],
    ids=["dict", "list", "tuple", "grid"],
)
def test_a_block_that_gives_something_else_is_named(wrap, given, images):
    describe()
    model = make(MyViT)
    model.layers[1] = Wrapped(model.layers[1], wrap)
    insert(model, 3)
    message = rf"a block must give tokens \(B, N, D\), or a tuple that begins with them, and not {given}"
    with pytest.raises(TypeError, match=message):
        model(images)


def test_tokens_are_not_counted_where_their_number_changes():
    describe(num_patches=None)
    model = insert(make(MyViT), 3)
    model.places = nn.Parameter(torch.zeros(1, 1, WIDTH))
    assert [model(make_images(size=size)).shape for size in (32, 48)] == [(2, 5)] * 2


def test_queries_are_located_where_a_description_says_the_grid(images):
    describe(grid=(4, 4))
    model = make(MyViT)
    check_host(model, images)
    assert mergers(insert(model, 3))[0].module.prior is not None


def test_a_grid_of_other_patches_is_caught(images):
    describe(grid=(3, 5))
    with pytest.raises(ValueError, match=r"16 tokens came to a merger .* 3 × 5 patches"):
        check_host(make(MyViT), images)


# What no error would tell, check_host does.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"num_prefix_tokens": 0, "num_patches": 17},
            r"the first 0 of 17 tokens are said to be the prefix, but those that are .* are 1 \(counted from 1\)",
        ),
        (
            {"num_prefix_tokens": 2, "num_patches": None},
            r"the first 2 of 17 .* any image are 1 \(counted from 1\)",
        ),
    ],
)
def test_a_wrong_prefix_is_seen(changed, message, images):
    describe(**changed)
    model = make(MyViT)
    insert(copy.deepcopy(model), 3)(images)
    with pytest.raises(NotAsDescribedError, match=message):
        check_host(model, images)


def test_blocks_that_do_not_run_as_described_are_seen(images):
    class Backwards(MyViT):
        def forward(self, images: Tensor) -> Tensor:
            x = self.tokens(images)
            for layer in self.layers[::-1]:
                x = layer(x)
            return x

    describe(Backwards)
    with pytest.raises(NotAsDescribedError, match=r"each once, but those that ran are \[4, 3, 2, 1\]"):
        check_host(make(Backwards), images)


def test_the_batch_in_the_second_place_is_seen(images):
    describe(num_patches=None)
    message = r"block 1 takes or gives \(17, 1, 32\), which should be \(B, N, D\) with B = 1"
    with pytest.raises(NotAsDescribedError, match=message):
        check_host(make(MyViT, batch_first=False), images)


def test_check_host_changes_nothing(images):
    describe()
    model = make(MyViT).train()
    before = [(type(m), m.training, sorted(vars(m))) for m in model.modules()]
    check_host(model, images)
    assert [(type(m), m.training, sorted(vars(m))) for m in model.modules()] == before


def test_check_host_says_why_a_model_is_refused(images):
    with pytest.raises(UnsupportedModelError, match="MyViT cannot take a merger"):
        check_host(make(MyViT), images)
