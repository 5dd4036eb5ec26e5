"""ToMe against a plain loop in float64, and its schedule."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from conftest import tokens
from patchmerger.reducers.tome import ToMe, tome_schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def groups_by_loop(keys: Tensor, sizes: list[float], num_tokens: int) -> list[list[int]]:
    """The patches in each merged token of one image, from the definition: one pair at a time."""
    groups, keys = [[n] for n in range(len(keys))], [key * size for key, size in zip(keys, sizes, strict=True)]
    while len(groups) > num_tokens:
        count = min(len(groups) - num_tokens, len(groups) // 2)
        destinations = range(0, len(groups), 2)
        pairs = []
        for source in range(1, len(groups), 2):
            alike = [float(cosine_similarity(keys[source], keys[d], dim=0)) for d in destinations]
            best = max(range(len(alike)), key=alike.__getitem__)
            pairs.append((alike[best], source, destinations[best]))
        merged = sorted(pairs, reverse=True)[:count]
        for _, source, destination in merged:
            groups[destination] = groups[destination] + groups[source]
            keys[destination] = keys[destination] + keys[source]
        gone = {source for _, source, _ in merged}
        order = [s for s in range(1, len(groups), 2) if s not in gone] + list(destinations)
        groups, keys = [groups[place] for place in order], [keys[place] for place in order]
    return groups


@pytest.mark.parametrize(("number", "num_tokens"), [(16, 9), (15, 8), (16, 3), (7, 1), (2, 1)])
@pytest.mark.parametrize("sized", [False, True])
def test_merges_as_a_plain_loop_does(number, num_tokens, sized):
    x, keys = tokens(3, number, 4), tokens(3, number, 5, seed=1)
    sizes = tokens(3, number, seed=2).abs() + 0.5 if sized else None
    merged, weights, after = ToMe(num_tokens)(x, keys=keys, sizes=sizes, return_weights=True, return_sizes=True)
    for image in range(3):
        own = [1.0] * number if sizes is None else sizes[image].tolist()
        groups = groups_by_loop(keys[image], own, num_tokens)
        for m, group in enumerate(groups):
            total = sum(own[n] for n in group)
            mean = sum(own[n] * x[image, n] for n in group) / total
            torch.testing.assert_close(merged[image, m], mean, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(float(after[image, m]), total, rtol=1e-6, atol=1e-6)
            expected = torch.tensor([own[n] / total if n in group else 0 for n in range(number)])
            torch.testing.assert_close(weights[image, m], expected, rtol=1e-6, atol=1e-6)


def test_gradients_pass_to_tokens_and_none_to_keys():
    x, keys = tokens(2, 9, 4).requires_grad_(), tokens(2, 9, 4, seed=1).requires_grad_()
    ToMe(5)(x, keys=keys).square().sum().backward()
    assert keys.grad is None
    assert bool((x.grad != 0).any(dim=-1).all())


def test_schedule_of_the_paper():
    assert tome_schedule(196, 12, 16) == {
        "num_tokens": [180, 164, 148, 132, 116, 100, 84, 68, 52, 36, 20, 10],
        "after": list(range(1, 13)),
    }
    with pytest.raises(ValueError, match=r"r \(0\) must be at least 1"):
        tome_schedule(196, 12, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pairs_under_autocast_are_those_without(dtype):
    x = torch.randn(4, 60, 32, generator=torch.Generator().manual_seed(0))
    expected = ToMe(20)(x, keys=x, return_weights=True)[1]
    with torch.autocast("cpu", dtype):
        assert torch.equal(ToMe(20)(x, keys=x, return_weights=True)[1], expected)


def test_sums_of_many_tokens_are_not_too_large_for_halves():
    x = torch.full((1, 196, 4), 700.0, dtype=torch.float16)
    assert torch.equal(ToMe(1)(x, keys=x), x[:, :1])
