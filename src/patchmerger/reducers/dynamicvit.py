"""DynamicViT: a small network decides which tokens are kept, learned with the rest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.mechanism.tracing import is_traced
from patchmerger.reducers.checks import check_tokens
from patchmerger.reducers.reducer import Reducer, all_weights, one_hot_weights, take_tokens

# A dropped token keeps this much of a whole one's weight in later attention, so that the gradient reaches its policy.
_LEAST = 1e-6


class DynamicViT(Reducer):
    """Keep the M tokens that a prediction module finds most worth keeping.

    With ``e = GELU(Linear(norm(X)))``, its first half local, the mean of its second half over the tokens that are still
    there global: ``π = softmax(MLP([local, global]))``, the probabilities to keep and to drop each token.

    - In evaluation the M tokens of the highest π go on, in their order.
    - In training all tokens go on, with a policy drawn from π by the straight-through Gumbel softmax: a dropped token
      has size 0 (10⁻⁶, for the gradient), so that later attention does not see it (attention masking). The gradient
      reaches π through the policy, and so does that of the paper's loss ``ratio_weight · (kept share − M / N)²``,
      which joins the backward pass by itself: add no term for it. It does so with the factor 1: where the loss of the
      training is multiplied before its backward pass (by a ``GradScaler``, or divided by the number of batches whose
      gradients are added up), multiply ``ratio_weight`` by the same.

    The teacher of the paper is what ``patchmerger accelerate`` does anyway.

    Args:
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        ratio_weight: Weight of the loss on the share of tokens that are kept.

    Source: Rao et al., *DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification*, arXiv 2106.02034,
    section 3.
    """

    needs = ("sizes",)
    gives_sizes = True
    needs_class_token = True
    learns_in_train_mode = True

    def __init__(self, num_tokens: int, dim: int, *, ratio_weight: float = 2.0) -> None:
        super().__init__(num_tokens)
        if dim < 8:
            raise ValueError(f"dim ({dim}) must be at least 8: the prediction module halves it three times")
        self.dim = dim
        self.ratio_weight = float(ratio_weight)
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim // 2 * 2, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(),
            nn.Linear(dim // 4, 2), nn.LogSoftmax(dim=-1),
        )  # fmt: skip

    def forward(
        self, x: Tensor, *, sizes: Tensor | None = None, return_weights: bool = False, return_sizes: bool = False
    ) -> Any:
        """Keep (B, num_tokens, D) of (B, N, D); in training all N, of which some have size 0.

        ``sizes`` are the policy so far, (B, N), 0 for a token that was dropped before; ``None`` for all 1. With
        ``return_weights`` A (B, num_tokens, N) comes too; with ``return_sizes`` (Y, A or None, sizes (B, N) in
        training, else None).
        """
        policy = x.new_ones(x.shape[:2]) if sizes is None else sizes.to(x.dtype)
        scores = self.scores(x, policy)
        if self.training:
            drawn = F.gumbel_softmax(scores.float(), hard=True)[..., 0] * policy.float()  # (B, N)
            kept_share = drawn.mean(dim=1)  # (B,)
            loss = self.ratio_weight * (kept_share - self.num_tokens / x.shape[1]).square().mean()
            sizes = _WithLoss.apply(drawn, loss) * (1 - _LEAST) + _LEAST
            kept, weights = x, all_weights(x) if return_weights else None
        else:
            if not is_traced(x):
                check_tokens(x, None, self.num_tokens)
            index = scores[..., 0].topk(self.num_tokens, dim=1).indices.sort(dim=1).values  # (B, M)
            kept, weights = take_tokens(x, index), one_hot_weights(index, x.shape[1]) if return_weights else None
            sizes = None
        if return_sizes:
            return kept, weights, sizes
        return (kept, weights) if return_weights else kept

    def scores(self, x: Tensor, policy: Tensor) -> Tensor:
        """Log π, (B, N, 2): to keep and to drop, for tokens (B, N, D) of which ``policy`` (B, N) are there."""
        local, of_all = self.in_conv(x).split((self.dim - self.dim // 2, self.dim // 2), dim=-1)
        weights = (policy / policy.sum(dim=1, keepdim=True).clamp(min=_LEAST))[..., None]  # (B, N, 1)
        mean = (of_all * weights).sum(dim=1, keepdim=True)  # (B, 1, D / 2)
        both = torch.cat((local[..., : self.dim // 2], mean.expand_as(of_all)), dim=-1)
        scores: Tensor = self.out_conv(both)
        return scores


class _WithLoss(torch.autograd.Function):
    """``x`` itself; in the backward pass ``loss`` counts as a term of what is minimised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        """``x``."""
        ctx.loss_like = (loss.shape, loss.dtype, loss.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of ``x`` as it comes, and 1 for the loss."""
        shape, dtype, device = ctx.loss_like
        return gradients[0], torch.ones(shape, dtype=dtype, device=device)
