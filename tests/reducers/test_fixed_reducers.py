"""Fixed patterns and random dropping: which tokens are kept."""

import pytest
import torch

from patchmerger.prior import grid_positions
from patchmerger.reducers import FixedPattern, RandomDrop
from reducers.token_reducers import DIM, tokens

PATTERNS = {
    "l1": [".....", "..#..", ".###.", "..#..", "....."],
    "l2": [".....", ".###.", ".###.", ".###.", "....."],
    "linf": [".....", ".###.", ".###.", ".###.", "....."],
}


@pytest.mark.parametrize("distance", PATTERNS)
def test_patterns(distance):
    picture = "".join(PATTERNS[distance])
    x, positions = tokens(2, 25), grid_positions((5, 5))
    kept, weights = FixedPattern(picture.count("#"), distance)(x, positions=positions, return_weights=True)
    expected = [n for n, mark in enumerate(picture) if mark == "#"]
    assert torch.equal(kept, x[:, expected])
    assert weights.argmax(dim=2).tolist() == [expected, expected]


@pytest.mark.parametrize("distance", PATTERNS)
@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (6, 9), (1, 12)])
def test_patterns_by_loop(distance, grid):
    number = grid[0] * grid[1]
    norm = {"l1": lambda a, b: a + b, "l2": lambda a, b: a * a + b * b, "linf": max}[distance]
    # In whole numbers: twice the offset from the centre in patches, brought to a common denominator.
    far = [
        norm(abs(2 * r + 1 - grid[0]) * grid[1], abs(2 * c + 1 - grid[1]) * grid[0])
        for r in range(grid[0])
        for c in range(grid[1])
    ]
    for num_tokens in (1, number // 2, number - 1):
        _, weights = FixedPattern(num_tokens, distance)(
            tokens(1, number), positions=grid_positions(grid), return_weights=True
        )
        expected = sorted(sorted(range(number), key=lambda n: (far[n], n))[:num_tokens])
        assert weights[0].argmax(dim=1).tolist() == expected


def test_places_of_each_image():
    x = tokens(2, 9)
    positions = torch.stack((grid_positions((3, 3)), grid_positions((3, 3)).flip(0) * 0.5))
    _, weights = FixedPattern(1)(x, positions=positions, return_weights=True)
    assert weights.argmax(dim=2).tolist() == [[4], [0]]


def test_places_are_needed():
    pattern, x = FixedPattern(4), tokens(2, 9)
    assert pattern.needs == ("positions",)
    with pytest.raises(ValueError, match=r"positions must be given to a fixed pattern"):
        pattern(x)
    with pytest.raises(ValueError, match=r"positions must be \(N, 2\) or \(B, N, 2\).*got \(8, 2\)"):
        pattern(x, positions=torch.rand(8, 2))
    with pytest.raises(ValueError, match=r"distance \('l3'\) must be one of 'l1', 'l2', 'linf'"):
        FixedPattern(4, "l3")


def test_random_in_evaluation_is_always_the_same():
    x = tokens(3, 30)
    _, weights = RandomDrop(8).eval()(x, return_weights=True)
    assert torch.equal(weights[0], weights[1])
    _, again = RandomDrop(8).eval()(tokens(3, 30, seed=5), return_weights=True)
    assert torch.equal(weights, again)
    _, other = RandomDrop(8, seed=1).eval()(x, return_weights=True)
    assert not torch.equal(weights, other)
    assert weights[0].argmax(dim=1).tolist() == [6, 8, 10, 13, 16, 17, 23, 26]


def test_random_in_training_is_drawn_for_each_image():
    x, drop = tokens(3, 30), RandomDrop(8).train()
    torch.manual_seed(0)
    _, weights = drop(x, return_weights=True)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(drop(x, return_weights=True)[1], weights)
    torch.manual_seed(0)
    assert torch.equal(drop(x, return_weights=True)[1], weights)


@pytest.mark.parametrize("training", [False, True])
def test_random_keeps_all_alike(training):
    torch.manual_seed(0)
    counts = torch.zeros(16)
    for seed in range(400):
        drop = RandomDrop(4, seed=seed).train(training)
        _, weights = drop(torch.zeros(1, 16, DIM), return_weights=True)
        counts += weights[0].sum(dim=0)
    assert counts.min() > 65  # 100 each on average, standard deviation 9
    assert counts.max() < 135


def test_a_seed_may_be_of_any_size():
    x = tokens(2, 30)
    kept = [RandomDrop(8, seed=seed).eval()(x) for seed in (0, 2**40 + 1, 2**70 + 2)]
    assert all(each.shape == (2, 8, DIM) for each in kept)
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[1], RandomDrop(8, seed=2**40 + 1).eval()(x))
