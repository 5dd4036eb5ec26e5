"""What every reducer of this package refuses: tokens of another shape, and padding that leaves too few."""

from __future__ import annotations

import torch
from torch import Tensor

from patchmerger.merger import check_mask


def check_tokens(x: Tensor, mask: Tensor | None, num_tokens: int, *, dim: int | None = None) -> None:
    """Refuse tokens (B, N, D) that cannot be reduced to ``num_tokens``; ``dim`` is D, where it is fixed by parameters.

    Raises:
        ValueError: Another shape, fewer than M tokens or, in eager mode, an image with fewer real ones.
        TypeError: ``mask``, (B, N), is not boolean.
    """
    if x.ndim != 3 or (dim is not None and x.shape[-1] != dim):
        wanted = "(B, N, D)" if dim is None else f"(B, N, dim) with dim = {dim}"
        raise ValueError(f"x must be {wanted}, got {tuple(x.shape)}")
    if x.shape[1] < num_tokens:
        raise ValueError(f"num_tokens ({num_tokens}) is more than the {x.shape[1]} tokens that arrive")
    if mask is None:
        return
    check_mask(x, mask)
    if torch.compiler.is_compiling() or mask.is_meta:
        return
    real = mask.sum(dim=1)
    if bool((real < num_tokens).any()):
        few = (real < num_tokens).nonzero().flatten().tolist()
        raise ValueError(
            f"num_tokens ({num_tokens}) is more than the real tokens of image(s) {few} (mask has {real[few].tolist()} "
            "there): take fewer, or larger images"
        )
