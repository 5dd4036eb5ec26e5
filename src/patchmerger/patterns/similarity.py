"""How alike two reductions are: sets of kept patches, groups of merged ones, features of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.special import entr


def kept_overlap(kept: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of two sets of kept patches, ``|A ∩ B| / |A ∪ B|``, image by image.

    Args:
        kept: (B, N) bool: which patches are kept.
        other: (B, N) bool.

    Returns:
        (B,), from 0 to 1.
    """
    both, either = (kept & other).sum(dim=1), (kept | other).sum(dim=1)
    return both.double() / either.clamp(min=1)


def chance_overlap(kept: Tensor, other: Tensor) -> Tensor:
    """Intersection over union that sets of these sizes have where they are drawn at random, by its mean sizes.

    Args:
        kept: (B, N) bool: which patches are kept; in each image as many as the method needs.
        other: (B, N) bool.

    Returns:
        (B,), from 0 to 1.
    """
    sizes, others = kept.sum(dim=1).double(), other.sum(dim=1).double()
    both = sizes * others / kept.shape[1]
    return both / (sizes + others - both).clamp(min=1)


def mutual_information(label: Tensor, other: Tensor) -> Tensor:
    """Normalised mutual information of two groupings of the patches, ``2 I(A; B) / (H(A) + H(B))``, image by image.

    Args:
        label: (B, N) int64, the group of each patch, from 0 on.
        other: (B, N) int64, likewise; the numbers of the groups need not agree.

    Returns:
        (B,), from 0 to 1; 1 for two groupings that both put all patches together.
    """
    mine, theirs = (
        torch.nn.functional.one_hot(groups, int(groups.max()) + 1).double() for groups in (label, other)
    )  # (B, N, groups)
    joint = mine.transpose(1, 2) @ theirs / label.shape[1]  # (B, groups, groups)
    total = entr(joint.sum(dim=2)).sum(dim=1) + entr(joint.sum(dim=1)).sum(dim=1)
    shared = total - entr(joint.flatten(1)).sum(dim=1)
    return torch.where(total > 0, 2 * shared / total.clamp(min=1e-300), 1.0).clamp(0, 1)


def linear_cka(features: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment, ``‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)`` for features less their means (Frobenius norms).

    1 where one is the other, turned and scaled as a whole; it weighs directions by their variance. For few images it is
    biased upward: take several times as many as there are features.

    Args:
        features: X, (n, D), a row an image.
        other: Y, (n, D'), of the same images.

    Returns:
        From 0 to 1.

    Source: Kornblith, Norouzi, Lee and Hinton, *Similarity of Neural Network Representations Revisited*, arXiv
    1905.00414.
    """
    x, y = _centred(features), _centred(other)
    norm = torch.linalg.norm
    return float(norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y)).clamp(min=1e-300))


def procrustes_similarity(features: Tensor, other: Tensor) -> float:
    """``‖XᵀY‖_*`` (nuclear norm) for features less their means, of Frobenius norm 1: 1 − ½ of the Procrustes distance.

    The distance is ``min over rotations Q of ‖X − Y Q‖² = 2 − 2 ‖XᵀY‖_*``. 1 where one is the other, turned and scaled
    as a whole.

    Args:
        features: X, (n, D), a row an image.
        other: Y, (n, D'), of the same images.

    Returns:
        From 0 to 1.

    Source: Ding, Denain and Steinhardt, *Grounding Representation Similarity with Statistical Testing*, arXiv
    2108.01661.
    """
    x, y = _centred(features), _centred(other)
    scale = (torch.linalg.norm(x) * torch.linalg.norm(y)).clamp(min=1e-300)
    return float(torch.linalg.svdvals(x.T @ y).sum() / scale)


def _centred(features: Tensor) -> Tensor:
    features = features.double()
    return features - features.mean(dim=0)
