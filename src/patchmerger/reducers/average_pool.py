"""Average pooling to M tokens: the control that learns nothing."""

import torch.nn.functional as F
from torch import Tensor, nn


class AveragePool(nn.Module):
    """Average runs of neighbouring tokens: output m is the mean of X[⌊m·N/M⌋ … ⌈(m+1)·N/M⌉ − 1].

    Tokens stand in raster order, so a run is a piece of one row of patches, a row, or several. Without this
    control, equal accuracy could not be credited to what the PatchMerger learns.

    Args:
        num_tokens: Tokens that go on, M.

    Raises:
        ValueError: ``num_tokens`` below 1.
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        if num_tokens < 1:
            raise ValueError(f"num_tokens ({num_tokens}) must be at least 1")
        self.num_tokens = num_tokens

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, N, D) to (B, num_tokens, D)."""
        return F.adaptive_avg_pool1d(x.transpose(1, 2), self.num_tokens).transpose(1, 2)

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        return f"num_tokens={self.num_tokens}"
