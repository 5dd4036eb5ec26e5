"""The equation against plain loops, and its properties: order, padding, gradients, dtypes, compilers."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import tokens
from patchmerger.merger import PatchMerger, patch_merge

pytestmark = pytest.mark.usefixtures("one_thread")


NORMS = ["scores", "both", "none"]


def make_merger(dim: int, num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64, **kwargs) -> PatchMerger:
    """A merger with fixed weights, those of the norm not at their neutral values."""
    merger = PatchMerger(dim, num_tokens, init=tokens(num_tokens, dim, seed=seed), dtype=dtype, **kwargs)
    if merger.norm is not None:
        with torch.no_grad():
            merger.norm.weight.add_(tokens(dim, seed=seed + 1).to(dtype), alpha=0.3)
            merger.norm.bias.add_(tokens(dim, seed=seed + 2).to(dtype), alpha=0.3)
    return merger


def reference(x: Tensor, merger: PatchMerger, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The equation in plain loops over Python floats; A has a column of zeros where there is padding."""
    queries, eps = merger.weight.tolist(), 1e-6
    merged, weights = [], []
    for b, image in enumerate(x.tolist()):
        real = [n for n in range(len(image)) if mask is None or mask[b, n]]
        normed = {}
        for n in real:
            mean = sum(image[n]) / len(image[n])
            variance = sum((v - mean) ** 2 for v in image[n]) / len(image[n])
            normed[n] = image[n]
            if merger.norm is not None:
                gain, shift = merger.norm.weight.tolist(), merger.norm.bias.tolist()
                normed[n] = [
                    (v - mean) / math.sqrt(variance + eps) * g + s
                    for v, g, s in zip(image[n], gain, shift, strict=True)
                ]
        values = normed if merger.norm_mode == "both" else {n: image[n] for n in real}
        rows_merged, rows_weights = [], []
        for query in queries:
            scores = {n: merger.scale * sum(q * k for q, k in zip(query, normed[n], strict=True)) for n in real}
            top = max(scores.values())
            exponentials = {n: math.exp(score - top) for n, score in scores.items()}
            total = sum(exponentials.values())
            rows_weights.append([exponentials.get(n, 0.0) / total for n in range(len(image))])
            rows_merged.append([sum(exponentials[n] / total * values[n][d] for n in real) for d in range(len(query))])
        merged.append(rows_merged)
        weights.append(rows_weights)
    return torch.tensor(merged, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 0.25, -2.0])
@pytest.mark.parametrize(("N", "M"), [(1, 1), (7, 3), (3, 5)])
def test_equals_the_reference(norm, scale, N, M):
    merger = make_merger(6, M, norm=norm, scale=scale)
    x = tokens(2, N, 6, seed=9)
    merged, weights = merger(x, return_weights=True)
    expected, expected_weights = reference(x, merger)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merger(x), merged, rtol=0, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_masked_equals_the_reference(norm):
    merger = make_merger(6, 3, norm=norm)
    x = tokens(3, 5, 6, seed=9)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    merged, weights = merger(x, mask, return_weights=True)
    expected, expected_weights = reference(x, merger, mask)
    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-12, atol=1e-12)


def test_the_functional_form_takes_any_norm():
    x, weight = tokens(2, 7, 6), tokens(3, 6, seed=1)
    merged, weights = patch_merge(x, weight, norm=lambda t: t / 2, scale=3.0)
    expected = torch.einsum("md,bnd->bmn", weight, x * 1.5).softmax(-1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(merged, torch.einsum("bmn,bnd->bmd", expected, x))


sizes = st.integers(min_value=1, max_value=9)


@settings(max_examples=30, deadline=None)
@given(B=st.integers(1, 3), N=sizes, M=sizes, D=st.integers(1, 8), seed=st.integers(0, 99), norm=st.sampled_from(NORMS))
def test_the_order_of_the_tokens_changes_nothing(B, N, M, D, seed, norm):
    merger = make_merger(D, M, seed=seed, norm=norm)
    x = tokens(B, N, D, seed=seed)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    merged, weights = merger(x, return_weights=True)
    shuffled, shuffled_weights = merger(x[:, order], return_weights=True)
    torch.testing.assert_close(shuffled, merged)
    torch.testing.assert_close(shuffled_weights, weights[:, :, order])


@settings(max_examples=30, deadline=None)
@given(N=sizes, M=sizes, D=st.integers(1, 8), seed=st.integers(0, 99), norm=st.sampled_from(NORMS), data=st.data())
def test_weights_are_a_distribution_over_real_tokens(N, M, D, seed, norm, data):
    merger = make_merger(D, M, seed=seed, norm=norm)
    real = data.draw(st.lists(st.booleans(), min_size=N, max_size=N).filter(any))
    mask = torch.tensor([real])
    _, weights = merger(tokens(1, N, D, seed=seed), mask, return_weights=True)
    assert weights.shape == (1, M, N)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, M, dtype=torch.float64))
    assert bool((weights[:, :, ~mask[0]] == 0).all())


@settings(max_examples=30, deadline=None)
@given(N=sizes, extra=st.integers(1, 4), D=st.integers(1, 8), seed=st.integers(0, 99), norm=st.sampled_from(NORMS))
def test_padded_equals_unpadded(N, extra, D, seed, norm):
    merger = make_merger(D, 3, seed=seed, norm=norm)
    x = tokens(2, N, D, seed=seed)
    padded = torch.cat((x, torch.full((2, extra, D), 1e6, dtype=torch.float64)), dim=1)
    mask = torch.arange(N + extra).expand(2, -1) < N
    torch.testing.assert_close(merger(padded, mask), merger(x))


def test_a_huge_scale_picks_the_best_token():
    x, weight = tokens(2, 9, 6), tokens(4, 6, seed=1)
    merger = PatchMerger(6, 4, norm="none", scale=1e6, init=weight, dtype=torch.float64)
    best = torch.einsum("md,bnd->bmn", weight, x).argmax(-1)
    picked = torch.stack([x[b, best[b]] for b in range(2)])
    torch.testing.assert_close(merger(x), picked)


def test_one_hot_weights_give_the_tokens_back():
    x = torch.eye(5, dtype=torch.float64)[None] * 3
    merger = PatchMerger(5, 5, norm="none", scale=1e4, init=torch.eye(5), dtype=torch.float64)
    merged, weights = merger(x, return_weights=True)
    torch.testing.assert_close(weights[0], torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(merged, x)


def test_queries_of_zero_average():
    x = tokens(2, 9, 6)
    merger = PatchMerger(6, 3, init=torch.zeros(3, 6), dtype=torch.float64)
    torch.testing.assert_close(merger(x), x.mean(1, keepdim=True).expand(-1, 3, -1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients(norm, masked):
    merger = make_merger(4, 2, norm=norm)
    mask = torch.tensor([[True, True, False], [True, False, False]]) if masked else None
    names = [name for name, _ in merger.named_parameters()]

    def outputs(x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(merger, given, (x, mask), {"return_weights": True})

    inputs = (tokens(2, 3, 4).requires_grad_(), *(p.detach().clone().requires_grad_() for p in merger.parameters()))
    assert torch.autograd.gradcheck(outputs, inputs)


def test_values_are_raw_unless_both():
    x = tokens(1, 5, 4) * 100 + 50
    raw, normed = (make_merger(4, 2, norm=norm)(x) for norm in ("scores", "both"))
    assert raw.abs().mean() > 20
    assert normed.abs().mean() < 5


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_padding_may_hold_anything(norm, poison):
    merger = make_merger(4, 2, norm=norm)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    clean = tokens(2, 3, 4)
    gradients = []
    for filler in (0.0, poison):
        x = clean.masked_fill(~mask[:, :, None], filler).requires_grad_()
        merged, weights = merger(x, mask, return_weights=True)
        (merged.square().sum() + weights.square().sum()).backward()
        gradients.append((merged.detach(), x.grad, *(p.grad.clone() for p in merger.parameters())))
        merger.zero_grad()
    assert bool((gradients[1][1][~mask] == 0).all())
    for expected, given_ in zip(*gradients, strict=True):
        torch.testing.assert_close(given_, expected, rtol=0, atol=0)


class MaskedMerger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.merger = make_merger(4, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.merger(x, mask)


@pytest.mark.parametrize("how", ["compile", "export"])
def test_an_image_without_tokens_gives_zero_where_nothing_can_be_raised(how):
    model = MaskedMerger()
    x, mask = tokens(2, 3, 4), torch.tensor([[True, True, False], [True, True, True]])
    exported = torch.export.export(model, (x, mask)).module()
    ready = exported if how == "export" else torch.compile(model, fullgraph=True)
    torch.testing.assert_close(ready(x, mask), model(x, mask))
    mask = torch.tensor([[False, False, False], [True, True, True]])
    merged = ready(x, mask)
    assert bool((merged[0] == 0).all())
    torch.testing.assert_close(merged[1:], model(x[1:], mask[1:]))


def test_an_image_without_tokens_has_no_nan_in_the_functional_form():
    x = tokens(2, 3, 4).requires_grad_()
    merged, weights = patch_merge(x, tokens(2, 4), mask=torch.tensor([[False] * 3, [True] * 3]))
    assert bool((merged[0] == 0).all())
    assert bool((weights[0] == 0).all())
    merged.sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize(
    ("dtype", "softmax_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_dtypes(dtype, softmax_dtype, norm):
    merger = make_merger(16, 3, norm=norm, dtype=dtype, scale=0.25)
    x = tokens(2, 300, 16, dtype=dtype)
    merged, weights = merger(x, return_weights=True)
    assert merged.dtype == dtype
    assert weights.dtype == softmax_dtype
    # 300 weights rounded to bfloat16 would not sum to 1 this closely.
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)), rtol=0, atol=1e-5)
    exact, _ = reference(x.double(), copy.deepcopy(merger).double())
    torch.testing.assert_close(merged.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast(norm, autocast):
    merger = make_merger(16, 3, norm=norm, dtype=torch.float32, scale=0.25)
    x = tokens(2, 300, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=autocast):
        merged, weights = merger(x, return_weights=True)
    assert weights.dtype == torch.float32
    assert merged.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(merged, merger(x), rtol=0, atol=16 * torch.finfo(autocast).eps)


def test_any_number_of_tokens_at_run_time():
    merger = make_merger(4, 3)
    assert [tuple(merger(tokens(1, N, 4)).shape) for N in (1, 2, 50)] == [(1, 3, 4)] * 3


@pytest.mark.parametrize(
    ("x", "mask", "error", "message"),
    [
        (torch.ones(2, 3, 5), None, ValueError, r"x must be \(B, N, dim\) with dim = 4, got \(2, 3, 5\)"),
        (torch.ones(3, 4), None, ValueError, r"x must be \(B, N, dim\) with dim = 4, got \(3, 4\)"),
        (torch.ones(2, 0, 4), None, ValueError, r"x must have at least one token to merge, got \(2, 0, 4\)"),
        (torch.ones(2, 3, 4), torch.ones(3, 2) > 0, ValueError, r"mask must be \(B, N\) = \(2, 3\), got \(3, 2\)"),
        (torch.ones(2, 3, 4), torch.ones(2, 3), TypeError, r"mask must be bool .* got torch.float32; use mask.bool"),
        (
            torch.ones(2, 3, 4),
            torch.tensor([[True, False, True], [False, False, False]]),
            ValueError,
            r"mask has no real token for image\(s\) \[1\]: there is nothing to merge there",
        ),
    ],
)
def test_input_errors(x, mask, error, message):
    with pytest.raises(error, match=message):
        PatchMerger(4, 2)(x, mask)
