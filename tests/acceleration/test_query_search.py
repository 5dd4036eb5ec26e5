"""Directions for queries: constructed tokens, where the answer is known."""

import pytest
import torch

from patchmerger.acceleration.query_search import kmeans_directions, whitened_directions

pytestmark = pytest.mark.usefixtures("one_thread")


def clustered(stretch=1.0):
    """64 images of 16 tokens from 4 clusters around far-off centres, and which cluster each is of."""
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.eye(4, 8) + 3.0
    cluster = torch.randint(0, 4, (64, 16), generator=generator)
    noise = 0.3 * torch.randn(64, 16, 8, generator=generator)
    noise[..., 7] *= stretch  # a direction that varies much and says nothing
    return centres[cluster] + noise, cluster


@pytest.mark.parametrize("directions", [kmeans_directions, whitened_directions])
def test_each_query_finds_a_cluster_of_its_own(directions):
    keys, cluster = clustered()
    found = directions(keys, 4)
    assert found.shape == (4, 8)
    chosen = (keys @ found.T).argmax(dim=-1)
    table = torch.zeros(4, 4).index_put_((cluster.flatten(), chosen.flatten()), torch.tensor(1.0), accumulate=True)
    assert sorted(table.argmax(dim=1).tolist()) == [0, 1, 2, 3]
    assert table.max(dim=1).values.sum() == cluster.numel()


def test_directions_do_not_hold_the_mean_of_all_tokens():
    keys, _ = clustered()
    found = kmeans_directions(keys, 4)
    mean = keys.mean(dim=(0, 1))
    assert (found @ mean).abs().max() < 0.25 * found.norm(dim=1).min() * mean.norm()
    assert torch.allclose(kmeans_directions(keys + 100, 4), found, atol=1e-2)


def test_whitening_is_not_led_by_a_direction_of_large_variance():
    keys, cluster = clustered(stretch=20.0)
    chosen = (keys @ whitened_directions(keys, 4).T).argmax(dim=-1)
    table = torch.zeros(4, 4).index_put_((cluster.flatten(), chosen.flatten()), torch.tensor(1.0), accumulate=True)
    assert table.max(dim=1).values.sum() > 0.99 * cluster.numel()


@pytest.mark.parametrize("directions", [kmeans_directions, whitened_directions])
def test_more_tokens_than_different_ones_arrive(directions):
    keys = torch.eye(2, 6).repeat(5, 3, 1)
    found = directions(keys, 5)
    assert found.shape == (5, 6)
    assert torch.isfinite(found).all()


def test_a_seed_gives_the_same_directions_again():
    keys, _ = clustered()
    assert torch.equal(whitened_directions(keys, 4, seed=3), whitened_directions(keys, 4, seed=3))
