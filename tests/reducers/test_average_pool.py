import math

import pytest
import torch
from torch import Tensor

from patchmerger.reducers import AveragePool

SIZES = ((6, 3), (7, 3), (5, 5), (4, 6), (1, 3), (16, 5))


def weights_by_loop(real: list[bool], num_tokens: int) -> Tensor:
    """A, (M, N), from the definition: output m is the mean of real tokens ⌊m·n/M⌋ … ⌈(m+1)·n/M⌉ − 1."""
    places = [place for place, is_real in enumerate(real) if is_real]
    weights = torch.zeros(num_tokens, len(real), dtype=torch.float64)
    for m in range(num_tokens):
        start, end = m * len(places) // num_tokens, math.ceil((m + 1) * len(places) / num_tokens)
        for place in places[start:end]:
            weights[m, place] = 1 / (end - start)
    return weights


@pytest.mark.parametrize(("number", "num_tokens"), SIZES)
def test_means_of_runs(number, num_tokens):
    x = torch.randn(2, number, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = weights_by_loop([True] * number, num_tokens)
    pool = AveragePool(num_tokens)
    torch.testing.assert_close(pool(x), expected @ x)
    pooled, weights = pool(x, return_weights=True)
    torch.testing.assert_close(pooled, expected @ x, rtol=0, atol=1e-6)  # the weights are float32
    torch.testing.assert_close(weights.double(), expected.expand(2, -1, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("number", "num_tokens"), SIZES)
def test_padding_is_left_out(number, num_tokens):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, number, 4, generator=generator)
    mask = torch.rand(4, number, generator=generator) < 0.7
    mask[:, 0] = True
    expected = torch.stack([weights_by_loop(real, num_tokens) for real in mask.tolist()])
    pooled, weights = AveragePool(num_tokens)(x.masked_fill(~mask[:, :, None], torch.nan), mask, return_weights=True)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled.double(), expected @ x.double(), rtol=0, atol=1e-6)
    assert torch.equal(AveragePool(num_tokens)(x, mask), pooled)


def test_low_precision_and_gradients():
    x = torch.randn(2, 6, 4, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    pooled, weights = AveragePool(2)(x, mask, return_weights=True)
    assert (pooled.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
    pooled.sum().backward()
    torch.testing.assert_close(x.grad[1, :, 0].float(), torch.tensor([0.5] * 4 + [0.0] * 2))


def test_its_settings():
    assert repr(AveragePool(3)) == "AveragePool(num_tokens=3, num_heads=1)"
    assert list(AveragePool(3).parameters()) == []
    with pytest.raises(ValueError, match=r"num_tokens \(0\) must be a whole number of at least 1"):
        AveragePool(0)
    with pytest.raises(ValueError, match=r"mask has no real token for image\(s\) \[1\]"):
        AveragePool(2)(torch.ones(2, 3, 4), torch.tensor([[True] * 3, [False] * 3]))


@pytest.mark.parametrize("masked", [False, True])
def test_each_group_of_features_is_the_average_of_its_own_part_of_a_run(masked):
    x = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 8, dtype=torch.bool) if masked else None
    pooled, weights = AveragePool(2, num_heads=2)(x, mask, return_weights=True)
    parts = x.unflatten(1, (2, 2, 2)).mean(dim=3)  # (B, M, H, D)
    torch.testing.assert_close(pooled, torch.cat([parts[:, :, 0, :3], parts[:, :, 1, 3:]], dim=-1))
    torch.testing.assert_close(AveragePool(2, num_heads=2)(x, mask), pooled)
    torch.testing.assert_close(weights, AveragePool(2)(x, mask, return_weights=True)[1])
    with pytest.raises(ValueError, match=r"num_heads \(4\) must divide the 6 features"):
        AveragePool(2, num_heads=4)(x)
