"""TokenLearner, SiT and Sinkhorn against their equations, step by step in float64."""

import math

import pytest
import torch
from torch import Tensor

from patchmerger import PatchMerger
from patchmerger.reducers import Sinkhorn, SiT, TokenLearner
from reducers.token_reducers import DIM, NUM_PATCHES, make, tokens


def gelu(z: float, tanh: bool) -> float:
    inner = math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)) if tanh else math.erf(z / math.sqrt(2))
    return 0.5 * z * (1 + inner)


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def mlp_weights(reducer: TokenLearner | SiT, x: Tensor, *, eps: float, tanh: bool, scale: float) -> Tensor:
    """A, (M, N), of one image."""
    first, _, second = reducer.score
    columns = []
    for token in x:
        centred = token - token.mean()
        normed = centred / (centred.square().mean() + eps).sqrt() * reducer.norm.weight + reducer.norm.bias
        hidden = [gelu(float(w @ normed + b), tanh) for w, b in zip(first.weight, first.bias, strict=True)]
        columns.append(
            [scale * sum(a * h for a, h in zip(w.tolist(), hidden, strict=True)) + scale * float(b)
             for w, b in zip(second.weight, second.bias, strict=True)]
        )  # fmt: skip
    return torch.tensor([softmax(list(row)) for row in zip(*columns, strict=True)], dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize(("name", "eps", "tanh"), [("tokenlearner", 1e-6, True), ("sit", 1e-5, False)])
def test_scores_of_an_mlp(name, eps, tanh):
    reducer, x = make(name, 4), tokens(2, 7)
    scale = float(reducer.scale) if name == "sit" else 1.0
    merged, weights = reducer(x, return_weights=True)
    for image in range(2):
        expected = mlp_weights(reducer, x[image], eps=eps, tanh=tanh, scale=scale)
        torch.testing.assert_close(weights[image], expected)
        torch.testing.assert_close(merged[image], expected @ x[image])


def transport_by_loop(similarity: Tensor, epsilon: float, iterations: int) -> Tensor:
    """A, (M, N): Sinkhorn's scaling of the rows and columns of K = exp(similarity / ε), outside log space."""
    kernel = (similarity / epsilon).exp()
    rows, columns = torch.ones(len(kernel)).double(), torch.ones(kernel.shape[1]).double()
    for _ in range(iterations):
        for m in range(len(kernel)):
            rows[m] = 1 / sum(kernel[m, n] * columns[n] for n in range(kernel.shape[1]))
        for n in range(kernel.shape[1]):
            columns[n] = 1 / sum(kernel[m, n] * rows[m] for m in range(len(kernel)))
    plan = rows[:, None] * kernel * columns
    return plan / plan.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_transport(iterations):
    reducer, x = Sinkhorn(4, DIM, epsilon=0.3, num_iterations=iterations).double(), tokens(2, 7)
    merged, weights = reducer(x, return_weights=True)
    for image in range(2):
        cosine = torch.nn.functional.cosine_similarity(reducer.center[:, None], x[image][None], dim=-1)
        expected = transport_by_loop(cosine, 0.3, iterations)
        torch.testing.assert_close(weights[image], expected)
        torch.testing.assert_close(merged[image], expected @ x[image])


@torch.no_grad()
def test_iterations_share_the_tokens_out():
    reducer, x = Sinkhorn(5, DIM, epsilon=0.1, num_iterations=100).double(), tokens()
    reducer.center[1] = reducer.center[0] + 0.01 * reducer.center[2]
    _, weights = reducer(x, return_weights=True)
    torch.testing.assert_close(weights.sum(dim=1), torch.full((3, NUM_PATCHES), 5 / NUM_PATCHES).double())


def test_without_iterations_it_is_a_patch_merger_with_cosines():
    reducer, x = Sinkhorn(4, DIM, epsilon=0.5, num_iterations=0).double(), tokens()
    unit = torch.nn.functional.normalize
    merger = PatchMerger(DIM, 4, norm="none", scale=2.0, init=unit(reducer.center.detach(), dim=-1)).double()
    _, expected = merger(unit(x, dim=-1), return_weights=True)
    torch.testing.assert_close(reducer(x, return_weights=True)[1], expected)


def test_length_of_centers_does_not_matter():
    reducer, x = make("sinkhorn", 4), tokens()
    expected = reducer(x)
    with torch.no_grad():
        reducer.center.mul_(3)
    torch.testing.assert_close(reducer(x), expected)
    assert reducer.no_weight_decay() == {"center"}


@pytest.mark.parametrize("name", ["tokenlearner", "sit"])
def test_starts_without_favourites(name):
    torch.manual_seed(0)
    reducer = {"tokenlearner": TokenLearner, "sit": SiT}[name](8, 64)
    _, weights = reducer(torch.randn(4, 50, 64), return_weights=True)
    assert weights.max() < (0.5 if name == "tokenlearner" else 0.03)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_is_checked(epsilon):
    with pytest.raises(ValueError, match=r"epsilon \(.*\) must be above 0"):
        Sinkhorn(4, DIM, epsilon=epsilon)


@pytest.mark.parametrize("name", ["tokenlearner", "sit", "sinkhorn"])
def test_an_image_of_as_many_tokens_as_go_on_keeps_them_beside_a_larger_one(name):
    reducer, x = make(name, 6), tokens(2, 11)
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0, [1, 4, 5, 8, 10]] = False  # six real tokens
    x[~mask] = math.nan
    y, weights = reducer(x, mask, return_weights=True)
    assert torch.equal(y[0], x[0][mask[0]])
    assert torch.equal(y[0], reducer(x[:1, mask[0]])[0])
    assert torch.equal(weights[0, :, mask[0]], torch.eye(6, dtype=weights.dtype))
    assert torch.allclose(y[1], reducer(x[1:])[0])
