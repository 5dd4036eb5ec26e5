"""EViT: keep the tokens that the class token attends to most, and fuse the rest into one."""

from __future__ import annotations

import torch
from torch import Tensor

from patchmerger.reducers.checks import check_tokens
from patchmerger.reducers.reducer import Reducer, all_weights, one_hot_weights, take_tokens


class EViT(Reducer):
    """Keep the M − 1 tokens with the highest attention of the class token; token M is ``Σ a[n] X[n]`` of the rest.

    a (B, N) is the row of the class token in the block's attention matrix, after the softmax, averaged over heads.
    As in the authors' code, a is not normalised over the rest, so the fused token is small where little is attended to.
    Their ``keep_rate`` does not count the fused token: ``num_tokens`` does, so that all methods go on with as many.

    Args:
        num_tokens: Tokens that go on, M, with the fused one.

    Source: Liang et al., *Not All Patches are What You Need*, arXiv 2202.07800, section 3.
    """

    needs = ("class_attention",)
    inside_block = True
    sums_to_one = False

    def forward(
        self, x: Tensor, *, class_attention: Tensor, return_weights: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, N, D) → (B, num_tokens, D), by how much the class token attends to each token, (B, N)."""
        check_tokens(x, None, self.num_tokens)
        number = x.shape[1]
        if number == self.num_tokens:
            return (x, all_weights(x)) if return_weights else x
        index = class_attention.topk(self.num_tokens - 1, dim=1).indices.sort(dim=1).values  # (B, M − 1)
        rest = class_attention.scatter(1, index, 0.0)  # (B, N): 0 for what is kept
        fused = torch.bmm(rest[:, None].to(x.dtype), x)  # (B, 1, D); bmm, as in merger.py
        merged = torch.cat((take_tokens(x, index), fused), dim=1)  # (B, M, D)
        if not return_weights:
            return merged
        return merged, torch.cat((one_hot_weights(index, number), rest[:, None].float()), dim=1)
