"""What a merger does on real images: how many different mixtures it gives, how sharp they are, whether they collapsed.

For the weights A (B, M, N) of one merger, with a_i the i-th of an image's M rows and σ its singular values:

    effective rank   exp(−Σ p log p),  p = σ / Σ σ           from 1 (all rows alike) to M
    row entropy      −Σ_n a_i[n] log a_i[n] / log N           from 0 (one token is picked) to 1 (average pooling)
    similarity       a_i · a_j / (‖a_i‖ ‖a_j‖),  i ≠ j        from 0 (rows share no token) to 1 (all rows alike)

each averaged over images, and over rows or pairs of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import cast

import torch
from torch import Tensor, nn

from patchmerger.hosts import find_host
from patchmerger.hosts.state import without_peft
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.blocks import MergingBlock
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.recording import recorded_weights, tells_weights


@dataclass(frozen=True)
class MergerDiagnosis:
    """What one merger did on some images.

    Attributes:
        name: Its name in the model, such as ``"blocks.5.merger"``.
        num_tokens: Tokens it gives, M.
        effective_rank: Of A, from 1 to M (Roy & Vetterli 2007): how many different mixtures it gives.
        row_entropy: Of the rows of A, in units of log N: 1 is average pooling, 0 picks one token; ``None`` where
            one token arrives.
        similarity: Mean cosine between two rows of A: 1 where all queries look at the same tokens; ``None`` for M = 1.
        weight_std: Standard deviation of the entries of W; ``None`` for a reducer without a weight.
    """

    name: str
    num_tokens: int
    effective_rank: float
    row_entropy: float | None
    similarity: float | None
    weight_std: float | None


@torch.no_grad()
def diagnose(model: nn.Module, images: Tensor) -> list[MergerDiagnosis]:
    """Run a merged model over images and describe what each of its mergers did.

    The model runs in eval mode and eager (compiled parts of it too), and is left as it was.

    Args:
        model: A model with mergers; those that cannot tell their weights A (reducers without ``return_weights``) are
            left out. Without mergers the list is empty, and the model does not run.
        images: What the model takes, normalised images (B, 3, S, S), on its device.

    Returns:
        One diagnosis for each merger, first to last.

    Example::

        for merger in diagnose(model, images):
            print(f"{merger.name}: {merger.effective_rank:.1f} of {merger.num_tokens} mixtures differ")
    """
    present = [m for m in mergers(model) if tells_weights(m.module)]
    if not present:
        return []
    host = find_host(without_peft(model))
    blocks = {m.after: cast(MergingBlock, host.blocks[m.after - 1]) for m in present}
    with recorded_weights(model, blocks) as weights, eval_mode(model):
        model(images)
    return [_describe(m.name, weights[m.after].double(), getattr(m.module, "weight", None)) for m in present]


def effective_ranks(weights: Tensor) -> Tensor:
    """The effective rank of each image's A, (B,), from the weights (B, M, N); from 1 to M (Roy & Vetterli 2007)."""
    singular = torch.linalg.svdvals(weights)  # (B, min(M, N))
    return _entropy(singular / singular.sum(dim=-1, keepdim=True)).exp()


def similarities(weights: Tensor) -> Tensor | None:
    """The mean cosine between two rows of each image's A, (B,), from the weights (B, M, N); ``None`` for M = 1."""
    count = weights.shape[1]
    if count == 1:
        return None
    rows = nn.functional.normalize(weights, dim=-1)
    cosines = rows @ rows.transpose(1, 2)  # (B, M, M)
    trace = cosines.diagonal(dim1=1, dim2=2).sum(dim=-1)
    alike: Tensor = (cosines.sum(dim=(1, 2)) - trace) / (count * (count - 1))
    return alike


def _describe(name: str, weights: Tensor, queries: Tensor | None) -> MergerDiagnosis:
    _, count, arriving = weights.shape  # (B, M, N)
    similarity = similarities(weights)
    return MergerDiagnosis(
        name=name,
        num_tokens=count,
        effective_rank=float(effective_ranks(weights).mean()),
        row_entropy=float(_entropy(weights).mean()) / log(arriving) if arriving > 1 else None,
        similarity=None if similarity is None else float(similarity.mean()),
        weight_std=None if queries is None else float(queries.double().std(correction=0)),
    )


def _entropy(shares: Tensor) -> Tensor:
    """−Σ p log p over the last dimension, with 0 log 0 = 0."""
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy
