"""Average pooling to M tokens: the control that learns nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.tracing import is_traced
from patchmerger.merger import check_mask
from patchmerger.reducers.reducer import Reducer
from patchmerger.runs.checks import check_count


class AveragePool(Reducer):
    """Average runs of neighbouring tokens: output m is the mean of X[⌊m·N/M⌋ … ⌈(m+1)·N/M⌉ − 1].

    Tokens stand in raster order, so a run is a piece of one row of patches, a row, or several. Without this
    control, equal accuracy could not be credited to what the PatchMerger learns.

    With ``num_heads=H`` each group of D / H features is averaged over its own H-th of the run, from first to last: the
    control for a PatchMerger with heads.

    Args:
        num_tokens: Tokens that go on, M.
        num_heads: Groups of features, H.

    Raises:
        ValueError: In ``forward``, ``num_heads`` that do not divide D.
    """

    def __init__(self, num_tokens: int, num_heads: int = 1) -> None:
        super().__init__(num_tokens)
        self.num_heads = check_count("num_heads", num_heads)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool (B, N, D) to (B, num_tokens, D), as :class:`Reducer` has it; runs are those of an image's real tokens.

        Raises:
            ValueError: ``mask`` is not (B, N) or, in eager mode, an image has no real token at all (compiled or
                exported, such an image gives zeros).
            TypeError: ``mask`` is not boolean.
        """
        runs = self.num_tokens * self.num_heads
        if mask is None and not return_weights:
            return self._own_runs(F.adaptive_avg_pool1d(x.transpose(1, 2), runs).transpose(1, 2))
        if mask is None:
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        elif not is_traced(x):
            check_mask(x, mask)
        weights = _run_weights(mask, runs)
        pooled = self._own_runs(torch.bmm(weights.to(x.dtype), x.masked_fill(~mask[:, :, None], 0)))
        if self.num_heads > 1:
            weights = weights.reshape(-1, self.num_tokens, self.num_heads, weights.shape[2]).mean(dim=2)
        return (pooled, weights) if return_weights else pooled

    def _own_runs(self, pooled: Tensor) -> Tensor:
        """Of the averages of M · H runs, (B, M · H, D), to each group of features its own: (B, M, D)."""
        heads, dim = self.num_heads, pooled.shape[2]
        if heads == 1:
            return pooled
        if dim % heads:
            raise ValueError(f"num_heads ({heads}) must divide the {dim} features of a token")
        groups = pooled.reshape(-1, self.num_tokens, heads, heads, dim // heads)
        return groups.diagonal(dim1=2, dim2=3).transpose(2, 3).flatten(2)


@torch.fx.wrap  # one step of a graph that is traced symbolically
def _run_weights(mask: Tensor, num_tokens: int) -> Tensor:
    """A, (B, M, N): 1 / length of its run for each token in it."""
    place = (mask.cumsum(dim=1) - 1)[:, None]  # (B, 1, N): among the real tokens
    count = mask.sum(dim=1)[:, None, None]  # (B, 1, 1)
    output = torch.arange(num_tokens, device=mask.device)[:, None]  # (M, 1)
    start = output * count // num_tokens
    end = -(-(output + 1) * count // num_tokens)
    inside = ((place >= start) & (place < end) & mask[:, None]).float()  # (B, M, N)
    return inside / inside.sum(dim=-1, keepdim=True).clamp(min=1)
