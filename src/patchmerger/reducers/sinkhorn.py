"""The Sinkhorn tokenizer: learned centres share the tokens out by optimal transport."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.reducers.averaging import Averaging, masked_softmax
from patchmerger.runs.checks import check_count


class Sinkhorn(Averaging):
    """Transport all tokens to learned centres, each of which gets the same amount.

    ``Z = cos(V, X) / ε`` (B, M, N) for learned centres V (M, D). Sinkhorn's iterations scale the rows and columns of
    ``exp Z`` in turn, in log space, from v = 0:

    - ``u_m = −log Σ_n exp(Z_mn + v_n)``: every centre gets as much as every other;
    - ``v_n = −log Σ_m exp(Z_mn + u_m)``: every token is handed out as much as every other.

    Then ``A = softmax(Z + v over N)``, which is the plan with rows that sum to 1, and ``Y = A X``. With no iterations
    it is a PatchMerger with cosines for scores; the iterations keep two centres from taking the same tokens. Its
    gradient runs through the iterations.

    Two choices differ from the published code, so that the tokens stay on the scale which the later blocks of a trained
    model expect: rows sum to 1 (there columns do, and rows to about N / M), and the tokens are mixed as they are
    (there L2-normalised). Where N = M the tokens go on as they are, and the centres have no part in it.

    Args:
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        epsilon: ε, the regularisation: the smaller, the harder the assignment.
        num_iterations: Sinkhorn iterations.

    Source: Haurum, Madadi, Escalera and Moeslund, *Multi-Scale Hybrid Vision Transformer and Sinkhorn Tokenizer for
    Sewer Defect Classification*, Automation in Construction 2022; ε and the iterations from Haurum et al., arXiv
    2308.04657.
    """

    def __init__(self, num_tokens: int, dim: int, *, epsilon: float = 1.0, num_iterations: int = 3) -> None:
        super().__init__(num_tokens, dim)
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon ({epsilon}) must be above 0: 1.0, say, and less for a harder assignment")
        self.epsilon = float(epsilon)
        self.num_iterations = check_count("num_iterations", num_iterations, at_least=0)
        self.center = nn.Parameter(torch.randn(num_tokens, dim))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters whose length has no effect."""
        return {"center"}

    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N)."""
        similarity = F.linear(F.normalize(x, dim=-1), F.normalize(self.center, dim=-1)).transpose(1, 2)  # (B, M, N)
        return _transport(similarity, mask, self.epsilon, self.num_iterations)


@torch.fx.wrap  # one step of a graph that is traced symbolically, where it is open whether there is a mask
def _transport(similarity: Tensor, mask: Tensor | None, epsilon: float, num_iterations: int) -> Tensor:
    """A, (B, M, N), of the regularised transport for similarities (B, M, N)."""
    z = similarity.to(torch.promote_types(similarity.dtype, torch.float32)) / epsilon
    hidden = None if mask is None else ~mask[:, None]  # (B, 1, N)
    v = torch.zeros_like(z[:, :1])  # (B, 1, N)
    for _ in range(num_iterations):
        rows = z + v if hidden is None else (z + v).masked_fill(hidden, torch.finfo(z.dtype).min)
        u = -rows.logsumexp(dim=2, keepdim=True)  # (B, M, 1)
        v = -(z + u).logsumexp(dim=1, keepdim=True)  # (B, 1, N)
    return masked_softmax(z + v, mask)
