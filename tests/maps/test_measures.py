"""What merge maps say in numbers, against plain loops, and where the answer is known."""

import math

import pytest
import torch
from torch import Tensor

from patchmerger.maps.measures import (
    NO_TOKEN,
    UNUSED_BELOW,
    are_sets,
    effective_patches,
    leading_tokens,
    shares,
    taken,
    unused,
)

B, M, ROWS, COLUMNS = 3, 4, 3, 5


def random_maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    is_patch = torch.ones(B, ROWS, COLUMNS, dtype=torch.bool)
    is_patch[1, 2] = False
    scores = 4 * torch.randn(B, M, ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    scores = scores.masked_fill(~is_patch[:, None], -torch.inf)
    return scores.flatten(2).softmax(dim=2).unflatten(2, (ROWS, COLUMNS)), is_patch


def test_against_plain_loops():
    maps, is_patch = random_maps()
    for b in range(B):
        count = sum(bool(is_patch[b, r, c]) for r in range(ROWS) for c in range(COLUMNS))
        led = [0] * M
        for r in range(ROWS):
            for c in range(COLUMNS):
                amounts = [float(maps[b, m, r, c]) for m in range(M)]
                together = sum(amounts) * count / M
                assert float(taken(maps, is_patch)[b, r, c]) == pytest.approx(together)
                nothing = bool(is_patch[b, r, c]) and together < UNUSED_BELOW
                assert bool(unused(maps, is_patch)[b, r, c]) == nothing
                leads = NO_TOKEN if nothing or not is_patch[b, r, c] else amounts.index(max(amounts))
                assert int(leading_tokens(maps, is_patch)[b, r, c]) == leads
                if leads != NO_TOKEN:
                    led[leads] += 1
        assert shares(maps, is_patch)[b].tolist() == pytest.approx([each / count for each in led])
        for m in range(M):
            entropy = -sum(p * math.log(p) for p in maps[b, m].flatten().tolist() if p > 0)
            assert float(effective_patches(maps)[b, m]) == pytest.approx(math.exp(entropy))


def test_shares_and_unused_patches_are_all_patches():
    maps, is_patch = random_maps()
    nothing = unused(maps, is_patch).sum(dim=(1, 2)) / is_patch.sum(dim=(1, 2))
    torch.testing.assert_close(shares(maps, is_patch).sum(dim=1) + nothing, torch.ones(B))
    assert unused(maps, is_patch).any()


def test_the_mean_that_is_taken_is_an_equal_share():
    maps, is_patch = random_maps()
    means = taken(maps, is_patch).sum(dim=(1, 2)) / is_patch.sum(dim=(1, 2))
    torch.testing.assert_close(means, torch.ones(B, dtype=torch.float64))


def test_average_pooling_takes_all_patches_and_one_hot_maps_one():
    alike = torch.full((1, 2, 3, 4), 1 / 12)
    assert effective_patches(alike)[0].tolist() == pytest.approx([12, 12])
    one = torch.zeros(1, 2, 3, 4)
    one[0, 0, 1, 2] = one[0, 1, 0, 0] = 1
    assert effective_patches(one)[0].tolist() == pytest.approx([1, 1])
    everywhere = torch.ones(1, 3, 4, dtype=torch.bool)
    assert int(unused(one, everywhere).sum()) == 10
    assert are_sets(one)
    assert not are_sets(alike)
