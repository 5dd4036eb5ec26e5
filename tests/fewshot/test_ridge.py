"""The closed-form classifier against independent solutions of the same problem, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from patchmerger.fewshot.ridge import RidgeClassifier, accuracy, choose_strength

pytestmark = pytest.mark.usefixtures("one_thread")
STRENGTHS = [2.0**-10, 1.0, 32.0, 2.0**20]


def problem(n, dim, classes=4, seed=0, balanced=False):
    """Features on unequal scales and classes of unequal sizes, so that scaling and bias matter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    if not balanced:
        labels[: n // 3] = 0
    features = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    features = (features + labels[:, None] * torch.linspace(0, 1, dim)) * torch.linspace(0.1, 30, dim) + 5
    new = torch.randn(50, dim, generator=generator, dtype=torch.float64) * 30
    return features, labels, new


def targets_of(labels, classes=4):
    return 2.0 * np.eye(classes)[labels.numpy()] - 1


def weights(classifier, strength):
    """W, (D, C), of the standardised features: scores of unit vectors along them, without the bias."""
    return classifier.scores(classifier.directions, strength) - classifier.bias


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30), (20, 20)])
def test_it_equals_scikit_learns_ridge(n, dim, strength):
    features, labels, new = problem(n, dim)
    scaler = StandardScaler().fit(features.numpy())
    theirs = Ridge(alpha=strength, solver="svd").fit(scaler.transform(features.numpy()), targets_of(labels))
    ours = RidgeClassifier.fit(features, labels, 4)
    np.testing.assert_allclose(weights(ours, strength).T, theirs.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.bias, theirs.intercept_, rtol=1e-10, atol=1e-12)
    expected = theirs.predict(scaler.transform(new.numpy()))
    np.testing.assert_allclose(ours.scores(ours.project(new), strength), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("n", "dim"), [(40, 7), (12, 30)])
def test_it_solves_the_augmented_system_with_a_bias_that_is_not_penalised(n, dim, strength):
    features, labels, _ = problem(n, dim)
    z = features.numpy()
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    penalty = np.sqrt(strength) * np.eye(dim + 1)[:dim]  # one row for each weight, none for the bias
    rows = np.concatenate([np.column_stack([z, np.ones(n)]), penalty])
    solution = np.linalg.lstsq(rows, np.concatenate([targets_of(labels), np.zeros((dim, 4))]), rcond=None)[0]
    ours = RidgeClassifier.fit(features, labels, 4)
    np.testing.assert_allclose(weights(ours, strength), solution[:dim], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.bias, solution[dim], rtol=1e-8, atol=1e-10)


def test_with_classes_of_one_size_a_penalty_on_the_bias_changes_no_prediction():
    """As in few-shot draws: what big_vision does, a constant column of 100 that is penalised, ranks classes alike."""
    features, labels, new = problem(40, 12, balanced=True)
    ours = RidgeClassifier.fit(features, labels, 4)
    constant = torch.full((40, 1), 100.0, dtype=torch.float64)
    z = torch.cat([(features - ours.mean) * ours.factor, constant], dim=1)
    eye, targets = torch.eye(13, dtype=torch.float64), torch.from_numpy(targets_of(labels))
    theirs = torch.linalg.solve(z.T @ z + 8 * eye, z.T @ targets)
    expected = torch.cat([(new - ours.mean) * ours.factor, constant[:1].expand(50, 1)], dim=1) @ theirs
    scores = ours.scores(ours.project(new), 8)
    difference = scores - expected
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), rtol=0, atol=1e-9)
    assert torch.equal(scores.argmax(dim=1), expected.argmax(dim=1))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
    st.lists(st.floats(-100, 100), min_size=5, max_size=5),
    st.sampled_from(STRENGTHS),
)
def test_units_of_the_features_do_not_matter(factors, shifts, strength):
    features, labels, new = problem(24, 5)
    factor, shift = (torch.tensor(values, dtype=torch.float64) for values in (factors, shifts))
    scores = []
    for change in (lambda x: x, lambda x: x * factor + shift):
        classifier = RidgeClassifier.fit(change(features), labels, 4)
        scores.append(classifier.scores(classifier.project(change(new)), strength))
    torch.testing.assert_close(*scores, rtol=1e-6, atol=1e-6)


def test_a_column_that_does_not_vary_counts_for_nothing():
    features, labels, new = problem(30, 6)
    constant = torch.full((30, 1), 0.1)
    constant[0] *= 1 + 2**-23  # as float32 rounds
    widened = RidgeClassifier.fit(torch.cat([features.float(), constant], dim=1), labels, 4)
    plain = RidgeClassifier.fit(features.float(), labels, 4)
    anything = torch.cat([new, 1e6 * torch.randn(50, 1)], dim=1)
    torch.testing.assert_close(widened.scores(widened.project(anything), 1.0), plain.scores(plain.project(new), 1.0))


def test_from_no_penalty_to_nothing_but_penalty():
    features, labels, _ = problem(12, 30)
    ours = RidgeClassifier.fit(features, labels, 4)
    fitted = ours.scores(ours.project(features), 1e-9)
    torch.testing.assert_close(fitted, torch.from_numpy(targets_of(labels)), rtol=0, atol=1e-6)
    shrunk = ours.scores(ours.project(features), 1e12)
    torch.testing.assert_close(shrunk, ours.bias.expand(12, 4), rtol=0, atol=1e-6)


def test_everything_is_float64():
    features, labels, new = problem(12, 5)
    ours = RidgeClassifier.fit(features.bfloat16(), labels, 4)
    assert {t.dtype for t in vars(ours).values()} == {torch.float64}
    assert ours.scores(ours.project(new.float()), 1.0).dtype == torch.float64


def test_the_most_accurate_strength_is_chosen_and_of_equals_the_strongest():
    features, labels, new = problem(60, 8)
    ours = RidgeClassifier.fit(features, labels, 4)
    held, held_labels, _ = problem(200, 8, seed=1)
    accuracies = {s: accuracy(ours.scores(ours.project(held), s), held_labels) for s in STRENGTHS}
    strength, best = choose_strength(ours, held, held_labels, STRENGTHS)
    assert best == max(accuracies.values()) > min(accuracies.values())
    assert accuracies[strength] == best
    always = torch.zeros(50, dtype=torch.long)
    assert choose_strength(ours, new * 0 + ours.mean, always, [4.0, 64.0, 16.0])[0] == 64.0


def test_accuracy_counts_the_rows_that_are_right():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 0.75


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value):
    features, labels, _ = problem(12, 5)
    features[3, 2] = value
    with pytest.raises(ValueError, match=r"features hold values that are not finite"):
        RidgeClassifier.fit(features, labels, 4)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_a_strength_that_is_not_above_0_is_refused(strength):
    features, labels, _ = problem(12, 5)
    with pytest.raises(ValueError, match=rf"strength \({strength}\) must be above 0"):
        choose_strength(RidgeClassifier.fit(features, labels, 4), features, labels, [strength])
