"""Average pooling to M tokens: the control that learns nothing."""

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.tracing import is_traced
from patchmerger.merger import check_mask
from patchmerger.reducers.reducer import Reducer


class AveragePool(Reducer):
    """Average runs of neighbouring tokens: output m is the mean of X[⌊m·N/M⌋ … ⌈(m+1)·N/M⌉ − 1].

    Tokens stand in raster order, so a run is a piece of one row of patches, a row, or several. Without this
    control, equal accuracy could not be credited to what the PatchMerger learns.

    Args:
        num_tokens: Tokens that go on, M.
    """

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Pool (B, N, D) to (B, num_tokens, D), as :class:`Reducer` has it; runs are those of an image's real tokens.

        Raises:
            ValueError: ``mask`` is not (B, N) or, in eager mode, an image has no real token at all (compiled or
                exported, such an image gives zeros).
            TypeError: ``mask`` is not boolean.
        """
        if mask is None and not return_weights:
            return F.adaptive_avg_pool1d(x.transpose(1, 2), self.num_tokens).transpose(1, 2)
        if mask is None:
            mask = x.new_ones(x.shape[:2], dtype=torch.bool)
        elif not is_traced(x):
            check_mask(x, mask)
        weights = _run_weights(mask, self.num_tokens)
        pooled = torch.bmm(weights.to(x.dtype), x.masked_fill(~mask[:, :, None], 0))
        return (pooled, weights) if return_weights else pooled


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
