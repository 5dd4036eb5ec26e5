"""Top-K: keep the tokens that the class token attends to most."""

from __future__ import annotations

from torch import Tensor

from patchmerger.reducers.checks import check_tokens
from patchmerger.reducers.reducer import Reducer, all_weights, one_hot_weights, take_tokens


class TopK(Reducer):
    """Keep the M tokens with the highest attention of the class token, in their order.

    ``keep = top M of a``, where a (B, N) is the row of the class token in the block's attention matrix, after the
    softmax, averaged over heads. The block's MLP and all that follows see the kept tokens alone. Nothing is learned.

    Args:
        num_tokens: Tokens that go on, M.

    Source: EViT (arXiv 2202.07800) without its fused token, which *Which Tokens to Use?* (arXiv 2308.04657, section 3)
    calls Top-K.
    """

    needs = ("class_attention",)
    inside_block = True

    def forward(
        self, x: Tensor, *, class_attention: Tensor, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Keep (B, num_tokens, D) of (B, N, D), by how much the class token attends to each, (B, N)."""
        check_tokens(x, None, self.num_tokens)
        number = x.shape[1]
        if number == self.num_tokens:
            return (x, all_weights(x)) if return_weights else x
        index = class_attention.topk(self.num_tokens, dim=1).indices.sort(dim=1).values  # (B, M)
        kept = take_tokens(x, index)
        return (kept, one_hot_weights(index, number)) if return_weights else kept
