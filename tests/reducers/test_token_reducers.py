"""What holds for every reducer that needs the tokens alone: keep rate 1, padding, precision, graphs, refusals."""

import copy
import pickle

import pytest
import torch

from patchmerger.reducers import KMedoids, TokenLearner
from reducers.token_reducers import CLUSTERS, DIM, KEPT, MAKE, NUM_PATCHES, SOFT, make, places, tokens

pytestmark = pytest.mark.usefixtures("one_thread")

GRAPHS = [name for name in MAKE if name not in ("fixed-l1", "fixed-linf", "atc single", "atc complete")]
"""One of each kind: graphs take long to make."""


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("training", [False, True])
def test_keep_rate_1_changes_nothing(name, training):
    reducer, x = make(name, NUM_PATCHES).train(training), tokens()
    assert torch.equal(reducer(x, **places(reducer)), x)
    for mask in (None, torch.ones(x.shape[:2], dtype=torch.bool)):
        merged, weights = reducer(x, mask, return_weights=True, **places(reducer))
        assert torch.equal(merged, x)
        assert torch.equal(weights.double(), torch.eye(NUM_PATCHES).double().expand_as(weights))


@pytest.mark.parametrize("name", MAKE)
def test_output_is_the_average_that_the_weights_say(name):
    reducer, x = make(name, 6), tokens()
    merged, weights = reducer(x, return_weights=True, **places(reducer))
    assert merged.shape == (3, 6, DIM)
    torch.testing.assert_close(weights.double() @ x, merged, rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    assert torch.equal(reducer(x, **places(reducer)), merged)
    used = (weights > 0).sum(dim=1)  # (B, N): by how many outputs
    if name in SOFT:
        assert (used == 6).all()
    elif name in CLUSTERS:
        assert (used == 1).all()
        first = (weights > 0).int().argmax(dim=2)
        assert name == "dpcknn" or (first.diff() > 0).all()  # clusters in the order of their first tokens
    else:
        assert used.max() == 1
        assert (weights.argmax(dim=2).diff() > 0).all()  # in the order of the tokens


@pytest.mark.parametrize("name", MAKE)
def test_padding_is_as_if_it_were_not_there(name):
    reducer, x = make(name, 5), tokens()
    mask = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.6
    mask[0] = True
    padded = x.masked_fill(~mask[:, :, None], torch.nan)
    merged, weights = reducer(padded, mask, return_weights=True, **places(reducer))
    assert torch.equal(reducer(padded, mask, **places(reducer)), merged)
    for image, (real, given) in enumerate(zip(mask, x, strict=True)):
        assert not weights[image][:, ~real].any()
        if name == "random":  # whose choice goes by the index
            continue
        alone = {key: value[real] for key, value in places(reducer).items()}
        torch.testing.assert_close(merged[image], reducer(given[real][None], **alone)[0])


@pytest.mark.parametrize("name", [name for name in MAKE if name != "random"])
def test_order_of_the_tokens_does_not_matter(name):
    reducer, x = make(name, 6), tokens()
    order = torch.randperm(NUM_PATCHES, generator=torch.Generator().manual_seed(3))
    given = places(reducer)
    _, weights = reducer(x, return_weights=True, **given)
    shuffled = {key: value[order] for key, value in given.items()}
    _, weights_after = reducer(x[:, order], return_weights=True, **shuffled)
    if name in SOFT:
        torch.testing.assert_close(weights_after, weights[:, :, order])
    elif not name.startswith("fixed"):  # where those at the edge are equally far
        rows = [{tuple(row.tolist()) for row in image.round(decimals=6)} for image in weights[:, :, order]]
        assert rows == [{tuple(row.tolist()) for row in image.round(decimals=6)} for image in weights_after]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast(name, dtype):
    reducer, x = make(name, 5).float(), tokens().float()
    with torch.autocast("cpu", dtype=dtype):
        merged, weights = reducer(x, return_weights=True, **places(reducer))
    assert (merged.dtype, weights.dtype) == (torch.float32, torch.float32)
    if name not in SOFT:
        _, expected = reducer(x, return_weights=True, **places(reducer))
        torch.testing.assert_close((weights > 0), (expected > 0))  # the choice is made in float32
    merged, weights = reducer.to(dtype)(x.to(dtype), return_weights=True, **places(reducer))
    assert (merged.dtype, weights.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("name", MAKE)
def test_gradients_reach_the_tokens_and_what_is_learned(name):
    reducer, x = make(name, 5), tokens().requires_grad_()
    merged, weights = reducer(x, return_weights=True, **places(reducer))
    merged.square().sum().backward()
    touched = x.grad.abs().sum(dim=-1) > 0
    assert torch.equal(touched, (weights > 0).any(dim=1))
    assert all(parameter.grad is not None for parameter in reducer.parameters())
    assert all(
        p.grad.abs().sum() > 0 for n, p in reducer.named_parameters() if n != "score.bias" and n != "score.2.bias"
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_compiled(name):
    reducer, x = make(name, 5), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(reducer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, **places(reducer)), reducer(x, **places(reducer)))


@pytest.mark.parametrize("name", GRAPHS)
def test_exported_with_padding_for_any_number_of_images(name):
    reducer, x = make(name, 5), tokens()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, -3:] = False
    where = {key: value.expand(len(x), -1, -1) for key, value in places(reducer).items()}
    open_shapes = {key: {0: torch.export.Dim("images")} for key in ("x", "mask", *where)}
    exported = torch.export.export(reducer, (x, mask), where, dynamic_shapes=open_shapes).module()
    two = {key: value[:2] for key, value in where.items()}
    torch.testing.assert_close(exported(x[:2], mask[:2], **two), reducer(x[:2], mask[:2], **two))


@pytest.mark.parametrize("name", MAKE)
def test_traced_symbolically_with_and_without_padding(name):
    reducer, x = make(name, 5), tokens()
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:, -3:] = False
    fixed = {"return_weights": False} | ({"positions": None} if name in ("kmedoids", "random") else {})
    traced = torch.fx.symbolic_trace(reducer, concrete_args=fixed)
    torch.testing.assert_close(traced(x, None, **places(reducer)), reducer(x, **places(reducer)))
    torch.testing.assert_close(traced(x, mask, **places(reducer)), reducer(x, mask, **places(reducer)))


@pytest.mark.parametrize("name", MAKE)
def test_equal_tokens(name):
    reducer, x = make(name, 5), torch.zeros(2, NUM_PATCHES, DIM, dtype=torch.float64)
    merged, weights = reducer(x, return_weights=True, **places(reducer))
    assert torch.equal(merged, torch.zeros_like(merged))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("name", MAKE)
def test_copied_and_pickled(name):
    reducer, x = make(name, 5), tokens()
    for again in (copy.deepcopy(reducer), pickle.loads(pickle.dumps(reducer))):
        assert torch.equal(again(x, **places(reducer)), reducer(x, **places(reducer)))
    assert "num_tokens=5" in repr(reducer)


@pytest.mark.parametrize("name", MAKE)
def test_refusals(name):
    for value in (0, 2.0):
        with pytest.raises(ValueError, match=rf"num_tokens \({value}\) must be a whole number of at least 1"):
            MAKE[name](value)
    reducer, x = make(name, 5), tokens()
    with pytest.raises(ValueError, match=r"num_tokens \(5\) is more than the 4 tokens that arrive"):
        reducer(x[:, :4], **places(reducer))
    with pytest.raises(ValueError, match=r"x must be \(B, N, .*got \(20, 6\)"):
        reducer(x[0], **places(reducer))
    with pytest.raises(ValueError, match=r"mask must be \(B, N\) = \(3, 20\), got \(3, 19\)"):
        reducer(x, torch.ones(3, 19, dtype=torch.bool), **places(reducer))
    mask = torch.zeros(3, NUM_PATCHES, dtype=torch.bool)
    mask[:, :8] = True
    mask[1, 4:] = False
    with pytest.raises(ValueError, match=r"num_tokens \(5\) is more than the real tokens of image\(s\) \[1\].*\[4\]"):
        reducer(x, mask, **places(reducer))


@pytest.mark.parametrize("name", ["tokenlearner", "kmedoids", "dpcknn"])
def test_too_few_real_tokens_in_a_graph(name):
    reducer, x = make(name, 5), tokens()
    mask = torch.ones(3, NUM_PATCHES, dtype=torch.bool)
    mask[1, 4:] = False
    compiled = torch.compile(reducer, backend="eager")
    merged, weights = compiled(x, mask, return_weights=True)
    assert weights[1].sum(dim=-1).round().int().sort().values.tolist() == [int(name in SOFT), 1, 1, 1, 1]
    assert (merged[1].abs().sum(dim=-1) > 0).sum() == (5 if name in SOFT else 4)


def test_sizes_are_checked():
    assert {*SOFT, *CLUSTERS, *KEPT} == set(MAKE)
    with pytest.raises(ValueError, match=r"x must be \(B, N, dim\) with dim = 7, got \(3, 20, 6\)"):
        TokenLearner(4, 7)(tokens().float())
    with pytest.raises(ValueError, match=r"hidden_dim \(0\) must be a whole number of at least 1"):
        TokenLearner(4, 7, hidden_dim=0)
    with pytest.raises(ValueError, match=r"num_iterations \(-1\) must be a whole number of at least 0"):
        KMedoids(4, num_iterations=-1)
