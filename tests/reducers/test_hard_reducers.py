"""K-medoids, DPC-kNN and agglomerative clustering against plain loops in float64, which choose one token at a time."""

import itertools
import math

import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from patchmerger.reducers import ATC, DPCKNN, KMedoids
from patchmerger.reducers.distances import cosine_distances, squared_distances
from reducers.token_reducers import DIM, tokens

SIZES = ((2, 3), (9, 4), (12, 1), (12, 11), (20, 8))


def distance(a: Tensor, b: Tensor) -> float:
    return math.sqrt(sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)))


def medoids_by_loop(x: Tensor, num_tokens: int, iterations: int) -> list[int]:
    count = range(len(x))
    square = [[distance(x[i], x[j]) ** 2 for j in count] for i in count]
    chosen = [min(count, key=lambda i: sum(square[i]))]
    while len(chosen) < num_tokens:
        chosen.append(
            max((i for i in count if i not in chosen), key=lambda i: min(square[i][medoid] for medoid in chosen))
        )
    for _ in range(iterations):
        clusters: list[list[int]] = [[] for _ in chosen]
        for i in count:
            nearest = min(range(num_tokens), key=lambda m: (square[i][chosen[m]], m))
            clusters[chosen.index(i) if i in chosen else nearest].append(i)
        for m, members in enumerate(clusters):
            cost = {i: sum(square[i][j] for j in members) for i in members}
            best = min(members, key=lambda i: cost[i])
            if cost[best] < cost[chosen[m]]:
                chosen[m] = best
    return sorted(chosen)


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("number", "num_tokens"), SIZES[1:])
def test_medoids(number, num_tokens, iterations):
    x = tokens(4, number, seed=number)
    merged, weights = KMedoids(num_tokens, num_iterations=iterations)(x, return_weights=True)
    for image in range(4):
        expected = medoids_by_loop(x[image], num_tokens, iterations)
        assert weights[image].argmax(dim=1).tolist() == expected
        assert torch.equal(merged[image], x[image][expected])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_medoids_under_autocast_are_those_without(dtype):
    x = 30 * torch.randn(4, 60, 64, generator=torch.Generator().manual_seed(0))
    expected = KMedoids(8)(x)
    assert not torch.equal(expected, KMedoids(8, num_iterations=0)(x))
    with torch.autocast("cpu", dtype):
        assert torch.equal(KMedoids(8)(x), expected)


def test_iterations_reconstruct_better():
    x = tokens(32, 40)
    errors = []
    for iterations in (0, 1, 3):
        kept = KMedoids(6, num_iterations=iterations)(x)
        errors.append(torch.cdist(x, kept).amin(dim=2).square().sum())
    assert errors[0] > errors[1] > errors[2]


def peaks_by_loop(x: Tensor, num_tokens: int, neighbors: int) -> list[int]:
    """Cluster of each token; clusters in the order of their centres."""
    count = range(len(x))
    apart = [[distance(x[i], x[j]) / math.sqrt(x.shape[1]) for j in count] for i in count]
    density = []
    for i in count:
        near = sorted(apart[i])[:neighbors]
        density.append(math.exp(-sum(d**2 for d in near) / len(near)))
    score = []
    for i in count:
        denser = [apart[i][j] for j in count if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * (min(denser) if denser else max(apart[i])))
    centers = sorted(sorted(count, key=lambda i: -score[i])[:num_tokens])
    return [
        centers.index(i) if i in centers else min(range(num_tokens), key=lambda m: (apart[i][centers[m]], m))
        for i in count
    ]


@torch.no_grad()
@pytest.mark.parametrize("neighbors", [1, 3, 50])
@pytest.mark.parametrize(("number", "num_tokens"), SIZES[1:])
def test_density_peaks(number, num_tokens, neighbors):
    x = tokens(4, number, seed=number)
    reducer = DPCKNN(num_tokens, DIM, num_neighbors=neighbors).double()
    for parameter in reducer.parameters():
        torch.nn.init.normal_(parameter)
    merged, weights = reducer(x, return_weights=True)
    for image in range(4):
        label = peaks_by_loop(x[image], num_tokens, neighbors)
        for m in range(num_tokens):
            members = [n for n in range(number) if label[n] == m]
            share = [math.exp(float(reducer.score(x[image, n]))) for n in members]
            expected = sum(s / sum(share) * x[image, n] for s, n in zip(share, members, strict=True))
            torch.testing.assert_close(merged[image, m], expected)
            assert weights[image, m].nonzero().flatten().tolist() == members


def test_density_peaks_start_as_plain_means():
    _, weights = DPCKNN(4, DIM).double()(tokens(), return_weights=True)
    for row in weights.flatten(0, 1):
        members = row[row > 0]
        torch.testing.assert_close(members, torch.full_like(members, 1 / len(members)))


def test_scores_far_apart_do_not_overflow():
    reducer = DPCKNN(4, DIM)
    torch.nn.init.constant_(reducer.score.weight, 1e4)
    merged, weights = reducer(tokens().float(), return_weights=True)
    assert merged.isfinite().all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4))


LINK = {"single": min, "complete": max, "average": lambda values: sum(values) / len(values)}


def agglomerated_by_loop(x: Tensor, num_tokens: int, method: str) -> list[int]:
    """Cluster of each token, from the definition of the linkage; clusters in the order of their first tokens."""
    apart = [[1 - float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for b in x] for a in x]
    clusters = [[i] for i in range(len(x))]
    while len(clusters) > num_tokens:
        first, second = min(
            itertools.combinations(range(len(clusters)), 2),
            key=lambda pair: LINK[method]([apart[i][j] for i in clusters[pair[0]] for j in clusters[pair[1]]]),
        )
        clusters[first] += clusters.pop(second)
    clusters = sorted(map(sorted, clusters))
    return [next(m for m, members in enumerate(clusters) if n in members) for n in range(len(x))]


@pytest.mark.parametrize("method", LINK)
@pytest.mark.parametrize(("number", "num_tokens"), SIZES[1:])
def test_agglomeration(number, num_tokens, method):
    x = tokens(3, number, seed=number)
    merged, weights = ATC(num_tokens, linkage=method)(x, return_weights=True)
    label = (weights > 0).int().argmax(dim=1)
    for image in range(3):
        assert label[image].tolist() == agglomerated_by_loop(x[image], num_tokens, method)
        for m in range(num_tokens):
            torch.testing.assert_close(merged[image, m], x[image][label[image] == m].mean(dim=0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", LINK)
def test_agglomeration_as_scipy_does_it(method):
    x = tokens(4, 60)
    _, weights = ATC(9, linkage=method)(x, return_weights=True)
    label = (weights > 0).int().argmax(dim=1)
    for image, given in enumerate(label):
        tree = linkage(squareform(cosine_distances(x[image][None])[0].fill_diagonal_(0), checks=False), method)
        theirs = torch.from_numpy(fcluster(tree, 9, "maxclust"))
        assert torch.equal(given[:, None] == given, theirs[:, None] == theirs)


def test_linkage_is_checked():
    with pytest.raises(ValueError, match=r"linkage \('ward'\) must be one of 'average', 'single', 'complete'"):
        ATC(4, linkage="ward")


def test_distances():
    x = tokens(2, 9)
    square, cosine = squared_distances(x), cosine_distances(x)
    for image, i, j in itertools.product(range(2), range(9), range(9)):
        a, b = x[image, i], x[image, j]
        assert square[image, i, j] == pytest.approx(distance(a, b) ** 2, abs=1e-12)
        assert cosine[image, i, j] == pytest.approx(1 - float(a @ b / (a.norm() * b.norm())), abs=1e-12)
    for matrix in (square, cosine):
        assert torch.equal(matrix, matrix.transpose(1, 2))
    assert not squared_distances(x).diagonal(dim1=1, dim2=2).any()


def test_distances_are_exact_beside_what_all_tokens_share():
    x = tokens(2, 30).float()
    x[..., 0] = 300 + 1e-3 * torch.arange(30)
    expected = torch.cdist(x.double(), x.double()).square()
    assert (squared_distances(x) - expected).abs().max() < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(squared_distances(x), squared_distances(x.float()))
        assert squared_distances(x.bfloat16()).dtype == torch.float32
