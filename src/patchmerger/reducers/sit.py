"""The token slimming module of self-slimmed Vision Transformers, SiT (arXiv 2111.12624)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchmerger.reducers.averaging import Averaging, masked_softmax
from patchmerger.runs.checks import check_count


class SiT(Averaging):
    """Weigh the tokens by an MLP of each, sharpened alike: ``A = softmax(s · MLP(norm(X))ᵀ over N)``, ``Y = A X``.

    MLP is D → ``hidden_dim`` → M with GELU between, norm a layer normalisation, s one learned number that starts at 1.
    The weights of the MLP start at N(0, 0.02²), so that the output tokens start near the mean of all tokens. It
    differs from TokenLearner 1.1 in s and in the width of the MLP.

    The paper trains it by distillation from the plain model (feature recalibration), which is no part of the module.
    Where N = M the tokens go on as they are, and the parameters have no part in it.

    Args:
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        hidden_dim: Width of the MLP; ``None`` is half of ``dim``, as in the paper.

    Source: Zong, Li, Song, Wang, Qiao, Leng and Liu, *Self-slimmed Vision Transformer*, arXiv 2111.12624, section 3.
    """

    def __init__(self, num_tokens: int, dim: int, *, hidden_dim: int | None = None) -> None:
        super().__init__(num_tokens, dim)
        hidden_dim = max(dim // 2, 1) if hidden_dim is None else check_count("hidden_dim", hidden_dim)
        self.hidden_dim = hidden_dim
        self.norm = nn.LayerNorm(dim)
        layers = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, num_tokens)
        self.score = nn.Sequential(layers[0], nn.GELU(), layers[1])
        self.scale = nn.Parameter(torch.ones(1))
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N)."""
        scores: Tensor = self.score(self.norm(x)) * self.scale  # (B, N, M)
        return masked_softmax(scores.transpose(1, 2), mask)
