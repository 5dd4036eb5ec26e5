"""Directions for a merger's queries, made of the tokens that arrive at it.

Scores are ``w · k`` for normalised tokens k, so a query is a direction, and its length is how sharply it chooses.
Tokens have a large mean in common, which says nothing of a token: directions are differences from it. As normalised
tokens have about the same length, ``softmax(s c · k)`` over the tokens is ``softmax(-s ‖c - k‖² / 2)``: soft assignment
to the centre c, with variance 1/s.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

_TOKENS = 50_000  # more change no centre
_SHRINKAGE = 0.01


def kmeans_directions(keys: Tensor, num_tokens: int, *, seed: int = 0) -> Tensor:
    """Centres of clusters of tokens, less the mean of all.

    Args:
        keys: Normalised tokens, (B, N, D).
        num_tokens: Clusters M.
        seed: Of the first centres.

    Returns:
        Directions, (M, D).
    """
    tokens = _sample(keys, seed)
    return _centres(tokens, num_tokens, seed) - tokens.mean(dim=0)


def whitened_directions(keys: Tensor, num_tokens: int, *, seed: int = 0) -> Tensor:
    """Centres of clusters of tokens in which every direction varies alike: ``w = Σ⁻¹ (c − mean)``.

    So that a few directions of large variance do not decide alone which tokens are alike.

    Args:
        keys: Normalised tokens, (B, N, D).
        num_tokens: Clusters M.
        seed: Of the first centres.

    Returns:
        Directions, (M, D), in the coordinates of the tokens.
    """
    tokens = _sample(keys, seed)
    whiten = _whitening(tokens)  # (D, D)
    return _centres((tokens - tokens.mean(dim=0)) @ whiten, num_tokens, seed) @ whiten.T


def _sample(keys: Tensor, seed: int) -> Tensor:
    """At most so many tokens, (n, D), float32 on the CPU."""
    tokens = keys.flatten(0, -2)
    if len(tokens) > _TOKENS:
        chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:_TOKENS]
        tokens = tokens[chosen.to(tokens.device)]
    return tokens.detach().float().cpu()


def _centres(tokens: Tensor, num_tokens: int, seed: int) -> Tensor:
    """Of the clusters, (M, D); where there are fewer different tokens than clusters, some stand twice."""
    clusters = min(num_tokens, len(np.unique(tokens[:4096].numpy(), axis=0)))
    means = MiniBatchKMeans(clusters, n_init=3, batch_size=4096, random_state=seed).fit(tokens.numpy())
    centres = torch.from_numpy(means.cluster_centers_).float()
    return centres[torch.arange(num_tokens) % clusters]


def _whitening(tokens: Tensor) -> Tensor:
    """L (D, D) with L Lᵀ = Σ⁻¹, of a covariance Σ that is shrunk a little towards a multiple of one."""
    covariance = torch.cov(tokens.double().T)
    shrunk = covariance + _SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
    whitening: Tensor = torch.linalg.cholesky(torch.linalg.inv(shrunk)).float()
    return whitening
