"""Where samplers put tokens: in the image, by their seed, and where a map is high."""

import pytest
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from conftest import make_images, make_vit
from patchmerger import place
from patchmerger.placing import positions_given, positions_in, saliency_given
from patchmerger.placing.points import drawn_to, edge_map, sobol_points, toward_center, uniform_points

pytestmark = pytest.mark.usefixtures("one_thread")

OF_THEMSELVES = ("grid", "center", "subset", "uniform", "gaussian", "sobol", "edges", "learned")
RANDOM = ("subset", "uniform", "gaussian", "sobol", "edges")


def placed(sampler: str, num_tokens: int = 9, **kwargs) -> nn.Module:
    return place(make_vit(img_size=40), num_tokens, sampler, **kwargs)


@pytest.mark.parametrize("sampler", OF_THEMSELVES)
def test_windows_lie_in_the_image_and_evaluation_is_deterministic(sampler):
    model, images = placed(sampler), make_images(3, 40)
    positions = positions_in(model, images)
    assert positions.shape == (3, 9, 2)
    assert positions.min() >= 0.1 - 1e-6
    assert positions.max() <= 0.9 + 1e-6
    assert torch.equal(positions, positions_in(model, images))
    assert torch.equal(positions, positions_in(placed(sampler), images))
    torch.testing.assert_close(positions[1:2], positions_in(model, images[1:2]))
    assert len(positions[0].unique(dim=0)) == 9


@pytest.mark.parametrize("sampler", RANDOM)
def test_a_seed_fixes_evaluation_and_training_draws_anew(sampler):
    model, images = placed(sampler), make_images(3, 40)
    assert not torch.equal(positions_in(model, images), positions_in(placed(sampler, seed=1), images))
    embed = model.patch_embed.train()
    draws = [embed(images).patchmerger_placed.positions for _ in range(2)]
    assert not torch.equal(*draws)
    assert not torch.equal(draws[0][0], draws[0][1])
    assert all(0.1 - 1e-6 <= float(draw.min()) <= float(draw.max()) <= 0.9 + 1e-6 for draw in draws)
    torch.manual_seed(5)
    again = embed(images).patchmerger_placed.positions
    torch.manual_seed(5)
    assert torch.equal(embed(images).patchmerger_placed.positions, again)


def test_a_subset_is_of_patches():
    model = placed("subset", 9)
    for training in (False, True):
        model.patch_embed.train(training)
        positions = model.patch_embed(make_images(4, 40)).patchmerger_placed.positions
        cells = positions * 5 - 0.5
        torch.testing.assert_close(cells, cells.round())
        assert all(len(of_image.unique(dim=0)) == 9 for of_image in positions)


def test_sobol_is_the_known_sequence_and_covers_better():
    from torch.quasirandom import SobolEngine

    assert torch.equal(SobolEngine(2).draw(32).double(), torch.from_numpy(qmc.Sobol(2, scramble=False).random(32)))
    worse = [qmc.discrepancy(uniform_points(64, seed).numpy()) for seed in range(5)]
    better = [qmc.discrepancy(sobol_points(64, seed).numpy()) for seed in range(5)]
    assert max(better) < min(worse) / 3


def test_toward_the_center_by_the_distribution_of_scipy():
    from scipy.stats import truncnorm

    points = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    expected = truncnorm(-2, 2, loc=0.5, scale=0.25).ppf(points.numpy())
    torch.testing.assert_close(toward_center(points, 0.25), torch.from_numpy(expected))
    center, grid = (positions_in(placed(s, 16), make_images(1, 40)) for s in ("center", "grid"))
    assert ((center - 0.5).abs() <= (grid - 0.5).abs() + 1e-6).all()
    assert (center - 0.5).abs().mean() < 0.9 * (grid - 0.5).abs().mean()


def by_loop(density: Tensor, point: tuple[float, float], uniform_share: float) -> list[float]:
    """Where the distribution of one map reaches a point, by walking over its pixels."""
    share = (1 - uniform_share) * density / density.sum() + uniform_share / density.numel()
    found = []
    for wanted in point:
        masses = share.sum(dim=1) if not found else share[min(int(found[0] * len(share)), len(share) - 1)]
        left = wanted * float(masses.sum())
        for cell, mass in enumerate(map(float, masses)):
            if left < mass or cell == len(masses) - 1:
                found.append((cell + left / mass) / len(masses))
                break
            left -= mass
    return found


def test_drawn_to_a_map_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    density = torch.rand(3, 4, 7, generator=generator, dtype=torch.float64) ** 4
    points = torch.rand(3, 20, 2, generator=generator, dtype=torch.float64)
    found = drawn_to(density, points, 0.2)
    for b in range(3):
        expected = torch.tensor([by_loop(density[b], tuple(map(float, p)), 0.2) for p in points[b]])
        torch.testing.assert_close(found[b], expected.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(drawn_to(torch.zeros(3, 4, 7).double(), points, 0.0), points)


def test_edges_draw_tokens_to_them():
    images = torch.zeros(1, 3, 40, 40)
    images[..., :20] = make_images(1, 40)[..., :20]
    assert edge_map(images, (5, 10))[0, :, 6:].eq(0).all()
    for share, most in ((0.0, 9), (0.5, 6)):
        positions = positions_in(placed("edges", uniform_share=share), images)
        assert (positions[..., 1] < 0.55).sum() >= most


@pytest.mark.parametrize("size", [(40, 40), (5, 5)])
def test_a_saliency_map_draws_tokens(size):
    model, saliency = placed("saliency", uniform_share=0.0), torch.zeros(2, *size)
    saliency[0, : size[0] // 5, : size[1] // 5], saliency[1, -size[0] // 5 :] = 1, 2
    with saliency_given(model, saliency):
        positions = positions_in(model, make_images(2, 40))
    assert (positions[0] <= 0.2 + 1e-6).all()
    assert (positions[1, :, 0] >= 0.8 - 1e-6).all()
    with saliency_given(model, saliency[0]):
        assert torch.equal(positions_in(model, make_images(2, 40))[1], positions[0])


def test_learned_positions_begin_at_the_grid_and_are_trained():
    model, images = placed("learned", 25), make_images(2, 40)
    grid = positions_in(placed("grid", 25), images)
    torch.testing.assert_close(positions_in(model, images), grid)
    model.train()(images).square().mean().backward()
    offset = model.patch_embed.placement.offset
    assert offset.grad.abs().max() > 0
    assert "patch_embed.placement.offset" in model.no_weight_decay()
    with torch.no_grad():
        offset.add_(1.0)
    moved = positions_in(model, images)
    assert (moved >= grid - 1e-6).all()
    assert not torch.allclose(moved, grid)


def test_given_positions_go_before_the_sampler():
    model, images = placed("sobol", 3), make_images(2, 40)
    given = torch.tensor([[0.2, 0.3], [0.4, 0.5], [0.6, 0.7]])
    own = positions_in(model, images)
    with positions_given(model, given.tolist()):
        assert torch.equal(positions_in(model, images), given.expand(2, -1, -1))
        with positions_given(model, torch.stack((given, 1 - given))):
            assert torch.equal(positions_in(model, images)[1], 1 - given)
    assert torch.equal(positions_in(model, images), own)
    fixed = place(make_vit(img_size=40), positions=given)
    assert torch.equal(positions_in(fixed, images), given.expand(2, -1, -1))
    assert fixed.patch_embed.placement.settings.sampler == "given"
