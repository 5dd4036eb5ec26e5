"""A merger of vit-pytorch as one of ours, with the same weights."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from patchmerger.merger import PatchMerger


def from_vit_pytorch(module: nn.Module) -> PatchMerger:
    """Turn vit-pytorch's ``PatchMerger`` into ours, with the same weights and outputs.

    vit-pytorch computes ``Y = softmax(D^-0.5 · Q LN(X)ᵀ) LN(X)`` with ``queries`` Q (M, D) and a layer norm,
    which is ``norm="both"``, ``scale=dim**-0.5`` here.

    Args:
        module: A ``vit_pytorch.vit_with_patch_merger.PatchMerger`` (or anything with its ``queries``,
            ``norm`` and ``scale``).

    Returns:
        A new PatchMerger on the module's device and dtype; the module itself is left as it is.

    Raises:
        TypeError: ``module`` has no ``queries``, ``norm`` or ``scale``.
    """
    queries, norm = getattr(module, "queries", None), getattr(module, "norm", None)
    scale = getattr(module, "scale", None)
    if not (isinstance(queries, Tensor) and isinstance(norm, nn.LayerNorm) and isinstance(scale, float)):
        raise TypeError(
            f"module ({type(module).__name__}) is not vit-pytorch's PatchMerger: it needs `queries` (M, D), "
            "`norm` (nn.LayerNorm) and `scale` (float)"
        )
    num_tokens, dim = queries.shape
    merger = PatchMerger(
        dim, num_tokens, norm="both", scale=scale, init=queries.detach(), device=queries.device, dtype=queries.dtype
    )
    merger.norm = copy.deepcopy(norm)
    return merger.train(module.training)
