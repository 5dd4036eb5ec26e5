"""ToMe: merge the pairs of tokens whose keys are most alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchmerger.mechanism.modes import full_precision
from patchmerger.reducers.reducer import Reducer, all_weights


class ToMe(Reducer):
    """Merge N tokens into M by bipartite soft matching.

    The tokens fall into two sets by turns, sources (the 2nd, 4th, …) and destinations (the 1st, 3rd, …). Each source
    finds the destination with the most similar key, by cosine; of these pairs the N − M most similar are merged, by the
    mean weighted with the sizes of both. A step merges at most half of the tokens, so further steps follow, on the mean
    keys, until M are left. Sizes travel on: later attention adds ``log size`` to the scores of a token
    (proportional attention), so that it counts as often as the patches in it. Nothing is learned.

    Args:
        num_tokens: Tokens that go on, M. The paper takes away r in every block: see :func:`tome_schedule`.

    Source: Bolya et al., *Token Merging: Your ViT But Faster*, arXiv 2210.09461, section 3.
    """

    needs = ("keys", "sizes")
    inside_block = True
    gives_sizes = True
    traces_any_number = False

    def forward(
        self,
        x: Tensor,
        *,
        keys: Tensor,
        sizes: Tensor | None = None,
        return_weights: bool = False,
        return_sizes: bool = False,
    ) -> Any:
        """Merge (B, N, D) into (B, num_tokens, D) by keys (B, N, d): unmerged sources first, then the destinations.

        ``sizes`` are patches in each token, (B, N); ``None`` for one in each. With ``return_weights`` A (B, num_tokens,
        N) comes too; with ``return_sizes`` (Y, A or None, sizes (B, num_tokens) or None).
        """
        images, number = x.shape[:2]
        if number <= self.num_tokens:
            weights = all_weights(x) if return_weights else None
            return _answer(x, weights, sizes, return_weights, return_sizes)
        before = x.new_ones(images, number, dtype=torch.float32) if sizes is None else sizes.float()
        after, group = before, None
        exact = torch.promote_types(x.dtype, torch.float32)  # in halves a sum of many tokens may be too large
        merged = x.to(exact) * before[..., None]  # sums, divided by the sizes at the end
        keys = keys.detach().to(exact) * before[..., None]
        while merged.shape[1] > self.num_tokens:
            count = merged.shape[1]
            pairing = _Pairing(keys, min(count - self.num_tokens, count // 2))
            merged, keys = pairing.sums(merged), pairing.sums(keys)
            after = pairing.sums(after[..., None])[..., 0]
            if return_weights:
                group = pairing.group if group is None else pairing.group.gather(1, group)
        merged = (merged / after[..., None]).to(x.dtype)
        weights = None
        if group is not None:
            share = before / after.gather(1, group)  # (B, N)
            weights = before.new_zeros(images, self.num_tokens, number).scatter(1, group[:, None], share[:, None])
        return _answer(merged, weights, after, return_weights, return_sizes)


class _Pairing:
    """Which of T tokens are merged in one step, found from their ``keys`` (B, T, d): ``count`` sources each."""

    def __init__(self, keys: Tensor, count: int) -> None:
        keys = F.normalize(keys.float(), dim=-1)
        with full_precision(keys):
            similarity = keys[:, 1::2] @ keys[:, ::2].transpose(1, 2)  # (B, sources, destinations)
        self._num_destinations = similarity.shape[2]
        best, partner = similarity.max(dim=2)  # (B, sources)
        order = best.argsort(dim=1, descending=True)
        self._sources = order[:, :count]  # merged away
        self._unmerged = order[:, count:].sort(dim=1).values
        self._partner = partner
        self._destinations = partner.gather(1, self._sources)

    def sums(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T − count, D): the unmerged sources, then the destinations with what was merged into them."""
        source, destination = x[:, 1::2], x[:, ::2]
        wide = (-1, -1, x.shape[-1])
        moved = source.gather(1, self._sources[..., None].expand(wide))
        kept = source.gather(1, self._unmerged[..., None].expand(wide))
        exact = torch.promote_types(x.dtype, torch.float32)  # ONNX Runtime adds no halves by index, either
        sums = destination.to(exact).scatter_add(1, self._destinations[..., None].expand(wide), moved.to(exact))
        return torch.cat((kept, sums.to(x.dtype)), dim=1)

    @property
    def group(self) -> Tensor:
        """The place of each token in the output, (B, T)."""
        images, sources = self._partner.shape
        unmerged = self._unmerged.shape[1]
        number = sources + self._num_destinations
        place = torch.arange(max(unmerged, self._num_destinations), device=self._partner.device).expand(images, -1)
        of_sources = (self._partner + unmerged).scatter(1, self._unmerged, place[:, :unmerged])
        group = self._partner.new_empty(images, number)
        group[:, 1::2] = of_sources
        group[:, ::2] = unmerged + place[:, : self._num_destinations]
        return group


def _answer(x: Tensor, weights: Tensor | None, sizes: Tensor | None, return_weights: bool, return_sizes: bool) -> Any:
    if return_sizes:
        return x, weights, sizes
    return (x, weights) if return_weights else x


def tome_schedule(num_patches: int, depth: int, r: int) -> dict[str, list[int]]:
    """Where ToMe merges when it takes away ``r`` tokens in every block, as in its paper: arguments of ``insert``.

    Args:
        num_patches: Tokens that arrive, N.
        depth: Blocks of the model.
        r: Tokens that each block merges away; never more than half of those that come.

    Example::

        insert(model, **tome_schedule(196, 12, r=8), reducer="tome")
    """
    if r < 1:
        raise ValueError(f"r ({r}) must be at least 1: 8, say")
    counts, arriving = [], num_patches
    for _ in range(depth):
        arriving -= min(r, arriving // 2)
        counts.append(arriving)
    return {"num_tokens": counts, "after": list(range(1, depth + 1))}
