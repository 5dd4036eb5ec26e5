"""TokenLearner, version 1.1: an MLP scores each token for each output token (arXiv 2106.11297)."""

from __future__ import annotations

from torch import Tensor, nn

from patchmerger.reducers.averaging import Averaging, masked_softmax
from patchmerger.runs.checks import check_count


class TokenLearner(Averaging):
    """Weigh the tokens by an MLP of each: ``A = softmax(MLP(norm(X))ᵀ over N)``, ``Y = A X``.

    MLP is D → ``hidden_dim`` → M with GELU (in its tanh form) between, norm a layer normalisation with eps 1e-6. A
    PatchMerger is the same with one linear map in the MLP's place. Version 1.1 of the official code, which has the
    softmax where the paper's four convolutions end in a sigmoid, and "works better in general".

    Where N = M the tokens go on as they are, and the parameters have no part in it.

    Args:
        num_tokens: Tokens that go on, M.
        dim: Features of a token, D.
        hidden_dim: Width of the MLP.

    Source: Ryoo, Piergiovanni, Arnab, Dehghani and Angelova, *TokenLearner: What Can 8 Learned Tokens Do for Images
    and Videos?*, arXiv 2106.11297; ``TokenLearnerModuleV11`` in google-research/scenic.
    """

    def __init__(self, num_tokens: int, dim: int, *, hidden_dim: int = 64) -> None:
        super().__init__(num_tokens, dim)
        self.hidden_dim = check_count("hidden_dim", hidden_dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        layers = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, num_tokens)
        self.score = nn.Sequential(layers[0], nn.GELU(approximate="tanh"), layers[1])
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def averages(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A, (B, M, N)."""
        scores: Tensor = self.score(self.norm(x))  # (B, N, M)
        return masked_softmax(scores.transpose(1, 2), mask)
