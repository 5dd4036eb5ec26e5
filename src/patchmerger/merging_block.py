"""The first seam: a transformer block that merges the tokens which leave it."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from patchmerger.seams import Seam, has_seam


class MergingBlock(Seam):
    """Runs the host's own block, then its child ``merger`` on what comes out.

    Attributes:
        merger: The reducer, (B, N, D) → (B, M, D).
        num_passing_tokens: The first tokens of the sequence, which pass by the merger untouched.
        num_merged_tokens: M.
    """

    merger: nn.Module
    num_passing_tokens: int
    num_merged_tokens: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, P + N, D) → (B, P + M, D), for P tokens that pass by."""
        given = [a for a in (*args, *kwargs.values()) if a is not None and a is not False]
        if given:
            raise ValueError(
                "attn_mask and is_causal are for the tokens before the merge; merged tokens have no order and no "
                "padding: call the merged model without them"
            )
        x = super().forward(x, *args, **kwargs)  # type: ignore[misc]  # (B, P + N, D)
        passing = self.num_passing_tokens
        if passing == 0:
            return self.merger(x)  # type: ignore[no-any-return]  # (B, M, D)
        return torch.cat((x[:, :passing], self.merger(x[:, passing:])), dim=1)  # (B, P + M, D)


def is_merging(block: nn.Module) -> TypeGuard[MergingBlock]:
    """Whether tokens are merged after ``block``."""
    return has_seam(block, MergingBlock)
