"""The equation: N tokens in, M learned mixtures of them out (arXiv 2202.12015, section 3)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from patchmerger.mechanism.options import Norm, Prior
from patchmerger.mechanism.tracing import is_traced
from patchmerger.prior import GridPrior

Init: TypeAlias = Tensor | Callable[[Tensor], Any]


def patch_merge(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    normalize_values: bool = False,
    scale: float = 1.0,
    prior: Tensor | None = None,
    gain: Tensor | None = None,
    mask: Tensor | None = None,
    num_heads: int = 1,
) -> tuple[Tensor, Tensor]:
    """Merge N tokens into M: ``S = scale · W norm(X)ᵀ + L``, ``A = softmax(S over N)``, ``Y = g ⊙ A X``.

    With H heads each group of D / H features has queries of its own, W_h, and so weights of its own:
    ``Y_h = g_h ⊙ A_h X_h``.

    Shapes: B images, N tokens in, M tokens out, D features, H heads.

    Args:
        x: Tokens X, (B, N, D), N ≥ 1.
        weight: Queries W, (M · H, D): for each output token one row per head; in the paper H is 1.
        norm: Applied to X before the scores; ``None`` leaves X as it is.
        normalize_values: Mix norm(X) instead of X: ``Y = A norm(X)``.
        scale: Factor on the scores.
        prior: L, (M · H, N) or (B, M · H, N), added to the scores; ``None`` is 0, as in the paper.
        gain: g, (M · H,), a factor on each merged token, head by head; ``None`` is 1, as in the paper.
        mask: (B, N) bool, True = a real token. Padding gets exactly zero weight, whatever it holds
            (NaN too); an image without a real token gives Y = 0.
        num_heads: H, which divides D.

    Returns:
        The merged tokens Y (B, M, D) in the dtype of ``x``, and the weights A (B, M, N), the mean over heads, in the
        dtype of the softmax, which is at least float32; each row of A sums to 1.

    Source: Renggli et al., *Learning to Merge Tokens in Vision Transformers*, arXiv 2202.12015, section 3.
    """
    x = _fill_padding(x, mask, dim=2)
    keys = x if norm is None else norm(x)
    # As linear and bmm: exported, `@` repeats its factors for the batch, and OpenVINO copies the tokens for that.
    scores = nn.functional.linear(keys, scale * weight).transpose(1, 2)  # (B, M · H, N)
    scores = _at_least_float32(scores)
    if prior is not None:
        scores = scores + prior
    scores = _fill_padding(scores, mask, dim=1, lowest=True)
    weights = _fill_padding(scores.softmax(dim=-1), mask, dim=1)  # (B, M · H, N)
    values = keys if normalize_values else x
    if num_heads == 1:
        merged = torch.bmm(weights.to(values.dtype), values)  # (B, M, D)
        if gain is not None:
            merged = merged * gain.to(merged.dtype)[:, None]
        return merged.to(x.dtype), weights
    weights = torch.unflatten(weights, 1, (-1, num_heads))  # (B, M, H, N)
    groups = torch.unflatten(values, 2, (num_heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
    merged = torch.matmul(weights.transpose(1, 2).to(values.dtype), groups).transpose(1, 2)  # (B, M, H, D / H)
    if gain is not None:
        merged = merged * gain.to(merged.dtype).reshape(-1, num_heads, 1)
    return merged.flatten(2).to(x.dtype), weights.mean(dim=2)


# Where a model is traced symbolically, dtypes and whether there is a mask are open: these are one step of its graph.
@torch.fx.wrap
def _at_least_float32(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


@torch.fx.wrap
def _fill_padding(x: Tensor, mask: Tensor | None, dim: int, lowest: bool = False) -> Tensor:
    """``x`` with 0, or the lowest number, where ``mask`` (B, N), with a new dimension at ``dim``, is not True."""
    if mask is None:
        return x
    return x.masked_fill(~mask.unsqueeze(dim), torch.finfo(x.dtype).min if lowest else 0)


class PatchMerger(nn.Module):
    """Merge N tokens into a fixed number M of learned mixtures.

    ``Y = softmax(scale · W norm(X)ᵀ) X`` where:

    - X (B, N, dim) are the tokens that come in, Y (B, num_tokens, dim) those that go on;
    - W (num_tokens, dim) is learned, one row (query) per output token, kept as ``weight``;
    - the softmax runs over the N incoming tokens, in at least float32;
    - norm is ``nn.LayerNorm(dim, eps=1e-6)``, kept as ``norm``.

    N may differ from call to call; M does not. The module holds no more than W and the norm:
    ``num_tokens · dim + 2 · dim`` parameters (and 5 · ``num_tokens`` for a prior).

    With ``num_heads=H`` each of H groups of dim / H features has queries of its own, and so goes where it wants to in
    the image: ``Y_h = softmax(scale · W_h norm(X)ᵀ) X_h``. W is then (num_tokens · H, dim), the heads of a token one
    after another. That is not in the paper; it is for training from scratch, where the blocks before the merger learn
    what to put into which group. In a trained model the features of a token belong together.

    With ``prior="grid"`` the queries are *located*: a Gaussian over positions is added to the scores of each,
    ``Y = g ⊙ softmax(scale · W norm(X)ᵀ + L) X`` with ``L[m, n] = −½ ‖(p_n − c_m) / s_m‖²``, whose centre c_m and width
    s_m are learned and start on a grid of M tiles (:class:`~patchmerger.prior.GridPrior`). The gain g (M,), kept as
    ``gain``, is learned and starts at 1: an average of tokens is shorter than they are. That is not in the paper.

    Args:
        dim: Features of a token, D.
        num_tokens: Tokens that go on, M.
        norm: ``"scores"`` normalises for the scores only, so that Y stays on the scale of X: right for a
            trained network. ``"both"`` also mixes the normalised tokens. ``"none"`` has no norm at all.
        scale: Factor on the scores.
        init: W itself, (num_tokens, dim), or a function that fills a tensor in place (as in ``nn.init``)
            or returns one. By default W ~ N(0, 1 / (scale² · dim)), so that the scores of normalised
            tokens start with a standard deviation near 1 whatever ``dim`` is.
        prior: ``"grid"`` for located queries, kept as ``prior``; :meth:`forward` then needs the tokens' positions.
            ``"rows"`` for those that begin as M rows across the image, and not as tiles; with heads each begins in
            its own part of the row, from left to right, and not on the whole tile.
        num_heads: Groups of features that are merged each by its own queries, H; 1 as in the paper.
        device: Where W and the norm are made.
        dtype: Their dtype.

    Raises:
        ValueError: ``dim``, ``num_tokens`` or ``num_heads`` below 1, ``num_heads`` that do not divide ``dim``, an
            unknown ``norm`` or ``prior``, a ``scale`` that is zero or not finite, an ``init`` of another shape.
        TypeError: ``dim``, ``num_tokens`` or ``num_heads`` is no whole number, ``init`` neither a tensor nor a
            function.

    Settings that have a name are in :data:`~patchmerger.PRESETS`; :func:`~patchmerger.preset` gives their arguments.
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int = 8,
        *,
        norm: Norm = "scores",
        scale: float = 1.0,
        init: Init | None = None,
        prior: Prior | None = None,
        num_heads: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_tokens", num_tokens), ("num_heads", num_heads)):
            if type(value) is not int:
                raise TypeError(f"{name} ({value!r}) must be a whole number, not {type(value).__name__}")
        if dim < 1:
            raise ValueError(f"dim ({dim}) must be at least 1: it is the number of features of a token")
        if num_tokens < 1:
            raise ValueError(f"num_tokens ({num_tokens}) must be at least 1; the paper uses 8")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"num_heads ({num_heads}) must divide dim ({dim}) into groups of features: 1, as in the paper"
            )
        if norm not in get_args(Norm):
            raise ValueError(f"norm ({norm!r}) must be one of {', '.join(map(repr, get_args(Norm)))}")
        if not (math.isfinite(scale) and scale != 0):
            raise ValueError(f"scale ({scale}) must be finite and not zero: 1.0, or dim**-0.5 as vit-pytorch has it")
        if prior not in (None, *get_args(Prior)):
            raise ValueError(
                f"prior ({prior!r}) must be None, as in the paper, or, for located queries, 'grid' or 'rows'"
            )
        self.dim = dim
        self.num_tokens = num_tokens
        self.num_heads = num_heads
        self.norm_mode: Norm = norm
        self.scale = float(scale)
        self.weight = nn.Parameter(torch.empty(num_tokens * num_heads, dim, device=device, dtype=dtype))
        self.norm = None if norm == "none" else nn.LayerNorm(dim, eps=1e-6, device=device, dtype=dtype)
        self.prior = None if prior is None else GridPrior(num_tokens, prior, num_heads, device=device, dtype=dtype)
        self.gain = None if prior is None else nn.Parameter(torch.ones(len(self.weight), device=device, dtype=dtype))
        self._fill_weight(init)

    @property
    def needs(self) -> tuple[str, ...]:
        """What :meth:`forward` must be given besides the tokens: for located queries, where these are."""
        return () if self.prior is None else ("positions",)

    @property
    def located(self) -> list[nn.Parameter]:
        """What located queries have beside W: centres, widths and gains."""
        return [] if self.prior is None else [*self.prior.parameters(), cast(nn.Parameter, self.gain)]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay would pull towards average pooling, or out of their places."""
        return {name for name, _ in self.named_parameters() if not name.startswith("norm.")}

    def _fill_weight(self, init: Init | None) -> None:
        with torch.no_grad():
            if init is None:
                init = init_with_logit_std(1.0, self.scale)
            if not (isinstance(init, Tensor) or callable(init)):
                raise TypeError(
                    f"init ({init!r}) must be W itself, a tensor, or a function that fills one or returns one"
                )
            filled = init if isinstance(init, Tensor) else init(self.weight)
            if not isinstance(filled, Tensor) or filled is self.weight:
                return
            if filled.shape != self.weight.shape:
                raise ValueError(
                    f"init has shape {tuple(filled.shape)}, but W is (num_tokens · num_heads, dim) = "
                    f"{tuple(self.weight.shape)}"
                )
            self.weight.copy_(filled)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Merge (B, N, dim) tokens into (B, num_tokens, dim).

        Args:
            x: Tokens, (B, N, dim), N ≥ 1.
            mask: (B, N) bool, True = a real token; padding gets exactly zero weight.
            positions: Where the tokens are, (N, 2) or (B, N, 2): row and column, each from 0 to 1. Needed by located
                queries, and looked at by no others.
            return_weights: Give the weights A as well, from the same computation.

        Returns:
            Y (B, num_tokens, dim); with ``return_weights`` the pair of Y and A (B, num_tokens, N), the mean over heads.

        Raises:
            ValueError: ``x`` is not (B, N, dim), ``mask`` is not (B, N), located queries get no ``positions`` or those
                of another shape, or, in eager mode, an image has no real token at all (compiled or exported, such an
                image gives Y = 0).
            TypeError: ``mask`` is not boolean.
        """
        if not is_traced(x):  # traced symbolically, the shapes are open
            self._check_input(x, mask)
        merged, weights = patch_merge(
            x,
            self.weight,
            norm=self.norm,
            normalize_values=self.norm_mode == "both",
            scale=self.scale,
            prior=None if self.prior is None else self._located(x, positions),
            gain=self.gain,
            mask=mask,
            num_heads=self.num_heads,
        )
        return (merged, weights) if return_weights else merged

    def _check_input(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be (B, N, dim) with dim = {self.dim}, got {tuple(x.shape)}")
        if x.shape[1] < 1:
            raise ValueError(f"x must have at least one token to merge, got {tuple(x.shape)}")
        if mask is not None:
            check_mask(x, mask)

    def _located(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """L, (M · H, N) or (B, M · H, N)."""
        if positions is None:
            raise ValueError(
                f"positions must be given to a merger with prior='grid': (N, 2) or (B, N, 2), from 0 to 1, for x "
                f"{tuple(x.shape)}"
            )
        check_positions(x, positions)
        prior: Tensor = cast(GridPrior, self.prior)(positions)
        return prior

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        heads = f", num_heads={self.num_heads}" if self.num_heads > 1 else ""
        return f"dim={self.dim}, num_tokens={self.num_tokens}, norm={self.norm_mode!r}, scale={self.scale:g}{heads}"


def check_mask(x: Tensor, mask: Tensor) -> None:
    """Refuse a mask, (B, N) bool, True = a real token, that does not fit the tokens, or leaves an image without any.

    Raises:
        ValueError: Another shape or, in eager mode, an image without a real token.
        TypeError: Another dtype.
    """
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must be (B, N) = {tuple(x.shape[:2])}, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool with True = a real token, got {mask.dtype}; use mask.bool()")
    if not torch.compiler.is_compiling() and not mask.is_meta and not bool(mask.any(dim=1).all()):
        empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
        raise ValueError(f"mask has no real token for image(s) {empty}: there is nothing to merge there")


def check_positions(x: Tensor, positions: Tensor) -> None:
    """Refuse positions that are neither (N, 2) nor (B, N, 2) for the tokens.

    Raises:
        ValueError: Another shape; traced symbolically, shapes are open and all are taken.
    """
    # Not (…) in (…, …), which compares B with N: an export with an open number of images must not.
    if not is_traced(x) and positions.shape != ((x.shape[1], 2) if positions.ndim == 2 else (*x.shape[:2], 2)):
        raise ValueError(f"positions must be (N, 2) or (B, N, 2) for x {tuple(x.shape)}, got {tuple(positions.shape)}")


def init_with_logit_std(logit_std: float, scale: float = 1.0) -> Callable[[Tensor], Any]:
    """An ``init`` for a wanted standard deviation of the scores (logits): W ~ N(0, (logit_std / scale)² / dim).

    The scores of normalised tokens then start with a standard deviation near ``logit_std``: near 0 every output token
    starts as the average of all tokens, from some 3 on mostly as one of them. The default of PatchMerger is 1.
    ``scale`` is that of the merger.

    Raises:
        ValueError: ``logit_std`` is not above 0 or not finite: queries that start alike stay alike.
    """
    if not (math.isfinite(logit_std) and logit_std > 0):
        raise ValueError(f"logit_std ({logit_std}) must be above 0, as queries that start alike stay alike: 1.0, say")
    return functools.partial(_fill, logit_std=logit_std / abs(scale))


def _fill(weight: Tensor, *, logit_std: float) -> None:
    nn.init.normal_(weight, std=logit_std / weight.shape[-1] ** 0.5)
