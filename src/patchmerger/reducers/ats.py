"""ATS: sample tokens by their significance, those that count more often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patchmerger.reducers.reducer import Reducer, all_weights, one_hot_weights, take_tokens


class ATS(Reducer):
    """Sample M of N tokens by inverse transform sampling of their significance.

    With the attention a_h of the class token in head h and the values v_h of the block:

    - significance ``s[n] = Σ_h a_h[n] ‖v_h[n]‖``, ``F`` its cumulative sum over n, divided by its total;
    - token m is the n whose F[n] is nearest to ``u_m = m / M − 1 / 2M``, for m = 1 … M.

    A significant token is nearest to several u: the paper drops its repetitions, so that fewer than M tokens go on, as
    many as an image needs. Here M always go on, so that images share a batch: a token that was sampled c times stays c
    times, each with size 1 / c, which adds ``−log c`` to the scores of later attention. Attention then gives exactly
    what it gives for the different tokens alone; a class token sees no difference, an average over all tokens weighs
    repetitions. Nothing is learned; the choice has no gradient.

    Args:
        num_tokens: Tokens that go on, M.

    Source: Fayyaz et al., *Adaptive Token Sampling For Efficient Vision Transformers*, arXiv 2111.15667, section 3.
    """

    needs = ("significance", "sizes")
    inside_block = True
    gives_sizes = True

    def forward(
        self,
        x: Tensor,
        *,
        significance: Tensor,
        sizes: Tensor | None = None,
        return_weights: bool = False,
        return_sizes: bool = False,
    ) -> Any:
        """Sample (B, num_tokens, D) of (B, N, D), in their order, by their significance s (B, N).

        ``sizes`` are 1 / how often each token is here, (B, N), after a sampling before; ``None`` for once each. With
        ``return_weights`` A (B, num_tokens, N) comes too, 1 for the token that is sampled; with ``return_sizes`` (Y, A
        or None, sizes (B, num_tokens) or None).
        """
        number = x.shape[1]
        if number == self.num_tokens:
            sampled, weights = x, all_weights(x) if return_weights else None
        else:
            index = sampled_places(significance, self.num_tokens)
            sampled, weights = take_tokens(x, index), one_hot_weights(index, number) if return_weights else None
            before = torch.ones_like(significance, dtype=torch.float32) if sizes is None else sizes.float()
            repeated = (index[:, :, None] == index[:, None]).sum(dim=2)  # (B, M)
            sizes = before.gather(1, index) / repeated
        if return_sizes:
            return sampled, weights, sizes
        return (sampled, weights) if return_weights else sampled


@torch.no_grad()
def sampled_places(significance: Tensor, num_tokens: int) -> Tensor:
    """The places that are sampled, (B, M), in rising order, from significances (B, N) of at least 0."""
    total = significance.float().cumsum(dim=1)  # (B, N)
    share = total / total[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)
    levels = (torch.arange(num_tokens, device=share.device) + 0.5) / num_tokens  # u, (M,)
    above = (share[:, None] < levels[:, None]).sum(dim=2)  # (B, M), the first n with F[n] ≥ u, as F never falls
    above = above.clamp(max=share.shape[1] - 1)
    below = (above - 1).clamp(min=0)
    nearer_below = (levels - share.gather(1, below)).abs() <= (share.gather(1, above) - levels).abs()
    return torch.where(nearer_below, below, above)
