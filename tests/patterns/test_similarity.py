"""The measures against scikit-learn, scipy and their definitions."""

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from sklearn.metrics import v_measure_score

from patchmerger.patterns.similarity import (
    chance_overlap,
    kept_overlap,
    linear_cka,
    mutual_information,
    procrustes_similarity,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kept_overlap():
    kept = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    other = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0]]).bool()
    assert kept_overlap(kept, other).tolist() == pytest.approx([1 / 3, 0, 1])


def test_chance_overlap_is_that_of_random_sets():
    keys, others = drawn(4000, 20), drawn(4000, 20, seed=1)
    sizes = torch.tensor([10, 2]).repeat(2000)[:, None]  # a method may keep as many as an image needs
    kept, other = keys.argsort(dim=1).argsort(dim=1) < sizes, others.argsort(dim=1).argsort(dim=1) < 5
    for size in (0, 1):
        both, either = (kept & other)[size::2].sum(), (kept | other)[size::2].sum()
        expected = torch.full((2000,), float(both / either), dtype=torch.float64)
        torch.testing.assert_close(chance_overlap(kept, other)[size::2], expected, rtol=0, atol=0.01)
    every, none = torch.ones(1, 20, dtype=torch.bool), torch.zeros(1, 20, dtype=torch.bool)
    assert chance_overlap(every, every).item() == 1
    assert chance_overlap(none, none).item() == chance_overlap(every, none).item() == 0


def test_mutual_information_is_the_v_measure():
    generator = torch.Generator().manual_seed(0)
    label, other = (torch.randint(groups, (6, 30), generator=generator) for groups in (4, 7))
    other[0], other[1], label[2], other[2] = (label[0] + 2) % 4, 0, 3, 3
    expected = [v_measure_score(a, b) for a, b in zip(label.tolist(), other.tolist(), strict=True)]
    assert mutual_information(label, other).tolist() == pytest.approx(expected, abs=1e-12)
    assert mutual_information(label, other)[:3].tolist() == pytest.approx([1, 0, 1], abs=1e-12)


def test_cka_by_its_kernels():
    x, y = drawn(40, 5) + 3, drawn(40, 7, seed=1)
    centre = torch.eye(40).double() - 1 / 40
    kernels = [centre @ z @ z.T @ centre for z in (x, y)]
    hsic = [[float((a * b).sum()) for b in kernels] for a in kernels]
    assert linear_cka(x, y) == pytest.approx(hsic[0][1] / (hsic[0][0] * hsic[1][1]) ** 0.5)


def test_procrustes_as_scipy_has_it():
    x, y = drawn(40, 5), drawn(40, 5, seed=1)
    disparity = procrustes(np.asarray(x), np.asarray(y))[2]  # 1 − (sum of singular values)²
    assert procrustes_similarity(x, y) == pytest.approx((1 - disparity) ** 0.5)


@pytest.mark.parametrize("measure", [linear_cka, procrustes_similarity])
def test_turning_moving_and_scaling_do_not_matter(measure):
    x, y = drawn(40, 5), drawn(40, 7, seed=1)
    turn = torch.linalg.qr(drawn(7, 7, seed=2))[0]
    assert measure(x, x) == pytest.approx(1)
    assert 0 < measure(x, y) < 0.6
    assert measure(x, 3 * y @ turn + 4) == pytest.approx(measure(x, y))
    assert measure(x, y) == pytest.approx(measure(y, x))
