"""The closed-form linear classifier: ridge regression of features onto −1 and 1, exact, for many strengths at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RidgeClassifier:
    """A linear classifier fitted by least squares with a penalty, for any strength λ of the penalty.

    ``W, b = argmin ‖Z W + 1 bᵀ − T‖² + λ ‖W‖²`` where:

    - Z (n, D) are the n features that it is fitted to, standardised: ``Z = (X − μ) / σ``, with the mean μ and the
      standard deviation σ (divided by n) of each column of X; a column that does not vary counts for nothing;
    - T (n, C) is 1 for the class of a row and −1 for the others;
    - W (D, C) are the weights; b (C,) is the bias, the weight of a constant column, and **is not penalised**.

    As Z has mean 0, b is the mean of T, and with the singular values ``Z = U diag(s) Vᵀ`` of rank r

    ``W = V diag(s / (s² + λ)) Uᵀ (T − 1 bᵀ)``,

    so one decomposition serves every λ. Everything is float64, on the CPU.

    Attributes:
        mean: μ, (D,).
        factor: 1 / σ, (D,); 0 for a column that does not vary.
        directions: V, (D, r).
        singular_values: s, (r,).
        targets: Uᵀ (T − 1 bᵀ), (r, C).
        bias: b, (C,).
    """

    mean: Tensor
    factor: Tensor
    directions: Tensor
    singular_values: Tensor
    targets: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int) -> RidgeClassifier:
        """Decompose the features X (n, D), of labels int64 (n,), once; the strength is chosen afterwards.

        Raises:
            ValueError: Features that are not finite.
        """
        x = features.detach().cpu().double()  # (n, D)
        if not bool(x.isfinite().all()):
            raise ValueError("features hold values that are not finite: a model that gives them cannot be probed")
        mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)  # (D,)
        # Rounding in the features' own dtype makes a constant column vary a little; divided by that it would be noise.
        varies = deviation > torch.finfo(features.dtype).eps * x.abs().amax(dim=0)
        factor = torch.where(varies, 1 / deviation, 0.0)
        targets = 2 * F.one_hot(labels.cpu(), num_classes).double() - 1  # (n, C)
        bias = targets.mean(dim=0)
        u, s, v = torch.linalg.svd((x - mean) * factor, full_matrices=False)  # (n, r), (r,), (r, D)
        return cls(mean, factor, v.T, s, u.T @ (targets - bias), bias)

    def project(self, features: Tensor) -> Tensor:
        """Coordinates of features (B, D) along the directions, (B, r): what scores for several strengths share."""
        return (features.detach().cpu().double() - self.mean) * self.factor @ self.directions

    def scores(self, projected: Tensor, strength: float) -> Tensor:
        """Class scores (B, C) of projected features (B, r), for a strength λ above 0."""
        if not strength > 0:
            raise ValueError(f"strength ({strength}) must be above 0")
        shrink = self.singular_values / (self.singular_values**2 + strength)  # (r,)
        return projected * shrink @ self.targets + self.bias


def choose_strength(
    classifier: RidgeClassifier, features: Tensor, labels: Tensor, strengths: Sequence[float]
) -> tuple[float, float]:
    """The strength that is most accurate on held-out features (B, D), the largest of those that are equally so.

    Labels are class numbers, int64 (B,). Returns the strength, and its accuracy from 0 to 1.
    """
    projected = classifier.project(features)  # (B, r)
    accuracies = {strength: accuracy(classifier.scores(projected, strength), labels) for strength in strengths}
    best = max(accuracies, key=lambda strength: (accuracies[strength], strength))
    return best, accuracies[best]


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of the rows of scores (B, C) whose largest is that of their label (B,)."""
    return float((scores.argmax(dim=1) == labels).double().mean())
