"""Distances between all tokens of an image, in float32 whatever the tokens are in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.modes import full_precision


def squared_distances(x: Tensor) -> Tensor:
    """``‖x_i − x_j‖²`` of tokens (B, N, D): (B, N, N), in at least float32 and under no autocast, 0 on the diagonal.

    From one matrix product: ``‖x_i‖² + ‖x_j‖² − 2 x_i · x_j``, for tokens less their mean, so that what all tokens of
    an image have in common does not eat up the digits. The product is N² · D multiply-adds an image, which
    ``patchmerger.costs`` counts.
    """
    with full_precision(x):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x - x.mean(dim=1, keepdim=True)
        square = x.square().sum(dim=-1)  # (B, N)
        distance = square[:, :, None] + square[:, None] - 2 * _symmetric(x @ x.transpose(1, 2))  # (B, N, N)
        return distance.clamp(min=0) * (1 - torch.eye(x.shape[1], device=x.device, dtype=x.dtype))


def cosine_distances(x: Tensor) -> Tensor:
    """``1 − cos(x_i, x_j)``, (B, N, N), in at least float32 and under no autocast; zeros are at right angles."""
    with full_precision(x):
        unit = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        return 1 - _symmetric(unit @ unit.transpose(1, 2))


def _symmetric(product: Tensor) -> Tensor:
    """Without what rounding makes of x_i · x_j and x_j · x_i: a choice between the two would hang on it."""
    return (product + product.transpose(1, 2)) / 2
