"""Place the tokens of a model, put its grid of patches back, and say where its tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchmerger.hosts import Host, UnsupportedModelError, find_host
from patchmerger.hosts.state import refuse_adapters, unsupported_state
from patchmerger.hosts.timm.rotary import too_long_a_step
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import remove
from patchmerger.mechanism.blocks import is_merging
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.patch_grid import PatchGrid
from patchmerger.mechanism.placed_tokens import placed_embedding, placed_tokens
from patchmerger.mechanism.subclassing import attach, detach, has_own_forward, host_class, subclassed_modules
from patchmerger.placing.embedding import PlacedEmbedding
from patchmerger.placing.given import checked_positions, embedding_that_places
from patchmerger.placing.placement import Placement
from patchmerger.placing.settings import PlacingSettings, Sampler
from patchmerger.placing.transformer import PlacedTransformer

ModelT = TypeVar("ModelT", bound=nn.Module)
_CANNOT = "have its tokens placed"
_KNOWN = (VisionTransformer, VisionTransformerDistilled, Eva)
_NUM_TOKENS = 49


def place(
    model: ModelT,
    num_tokens: int | None = None,
    sampler: Sampler | None = None,
    *,
    window: int | tuple[int, int] | None = None,
    seed: int = 0,
    std: float = 0.25,
    uniform_share: float = 0.25,
    positions: Tensor | Sequence[Sequence[float]] | None = None,
    clamp: bool = False,
) -> ModelT:
    """Let a Vision Transformer look at an image through N windows at chosen places, in place of a grid (SPoT).

    ``token_n = E · window(p_n) + position embedding(p_n)``: the windows are sampled bilinearly around continuous
    positions p_n (B, N, 2), row and column from 0 to 1; E is the model's own projection, and its position embeddings
    (absolute or rotary) are interpolated at the same positions. At the middles of the patches these are the plain
    model's tokens. In place and reversible, like :func:`patchmerger.insert`, which may come before or after: keys of
    the state dict stay as they are, and the new ones contain ``.placement.``. arXiv 2507.01654.

    Args:
        model: A ``VisionTransformer``, ``VisionTransformerDistilled`` or ``Eva`` of timm.
        num_tokens: Tokens of an image, N; at most as many as it has patches. 49 if not given, or as many as
            ``positions``.
        sampler: How positions are chosen, see :data:`~patchmerger.placing.settings.Sampler`: "sobol" if not given,
            "given" with ``positions``.
        window: Height and width in pixels of what a token sees; those of a patch if not given.
        seed: Fixes the positions of the random samplers and of Sobol's sequence in evaluation.
        std: Standard deviation of "center" and "gaussian", as a share of the image.
        uniform_share: Share of the tokens that "edges" and "saliency" spread over the whole image.
        positions: For "given", the positions (N, 2) that every image has;
            :func:`~patchmerger.placing.positions_given` gives those of a batch.
        clamp: Move positions outside of the image to its edge; by default they are refused.

    Returns:
        ``model`` itself.

    Raises:
        UnsupportedModelError: Tokens cannot be placed in this model; nothing was changed.
        ValueError: Settings with which no token can be placed, more tokens than patches, fewer than a merger gives,
            positions outside of the image, or tokens that are placed already; nothing was changed.
    """
    if positions is not None:
        positions = checked_positions(positions, clamp=clamp)
        if positions.ndim != 2 or num_tokens not in (None, len(positions)) or sampler not in (None, "given"):
            raise ValueError(
                f"positions {tuple(positions.shape)} must be (num_tokens, 2), with sampler 'given': num_tokens is "
                f"{num_tokens!r} and sampler {sampler!r}; those of a batch are given by patchmerger.placing."
                "positions_given(model, positions)"
            )
        num_tokens, sampler = len(positions), "given"
    sizes = (window, window) if isinstance(window, int) else window
    settings = PlacingSettings(
        _NUM_TOKENS if num_tokens is None else num_tokens, sampler or "sobol", sizes, seed, std, uniform_share
    )
    return place_by_settings(model, settings, positions)


def place_by_settings(model: ModelT, settings: PlacingSettings, positions: Tensor | None = None) -> ModelT:
    """The same by settings; see :func:`place`."""
    host = find_host(model)
    _refuse_unplaceable(model)
    embed: Any = model.patch_embed
    _check_numbers(host, embed, settings)
    like = embed.proj.weight
    embed.placement = Placement(
        settings, tuple(embed.grid_size), positions, device=like.device, dtype=like.dtype
    ).train(embed.training)
    attach(embed, PlacedEmbedding)
    attach(model, PlacedTransformer)
    _tell_blocks(model)
    return model


def unplace(model: ModelT) -> ModelT:
    """Give a model its grid of patches back, in place: classes, state-dict keys and outputs are those before ``place``.

    Args:
        model: A model whose tokens are placed, with or without mergers, which stay.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: Its tokens are not placed.
        UnsupportedModelError: The model was wrapped or sharded since.
        TypeError: Another library changed a class since; nothing was changed.
    """
    find_host(model)
    refuse_adapters(model)
    embed = placed_embedding(model)
    if embed is None:
        raise ValueError(f"model ({host_class(model).__name__}) has no placed tokens")
    detach(*subclassed_modules(model, "placing"), purpose="placing")
    del embed.placement
    _tell_blocks(model)
    return model


def plain_model(model: ModelT) -> ModelT:
    """``model`` itself, in place without its mergers and with the patches of its grid for tokens."""
    if mergers(model):
        remove(model)
    return model if placed_embedding(model) is None else unplace(model)


def placing_of(model: nn.Module) -> PlacingSettings | None:
    """How the tokens of ``model`` are placed; ``None`` where they are the patches of a grid."""
    embed = placed_embedding(model)
    return None if embed is None else cast(Placement, embed.placement).settings


def positions_in(model: nn.Module, images: Tensor) -> Tensor:
    """Where ``model`` places its tokens in ``images``: middles of their windows, (B, N, 2), row and column from 0 to 1.

    Args:
        model: A model whose tokens are placed; its positions in evaluation are meant.
        images: (B, C, H, W), as the model takes them.

    Raises:
        ValueError: Its tokens are not placed.
    """
    embed = embedding_that_places(model)
    with torch.no_grad(), eval_mode(embed):
        return placed_tokens(embed(images)).positions


def _refuse_unplaceable(model: Any) -> None:
    """Refuse models in which a token cannot be placed, or where what does it would have no effect."""
    name, cls = host_class(model).__name__, host_class(model)
    if placed_embedding(model) is not None:
        raise ValueError(f"model ({name}) has placed tokens already: patchmerger.unplace(model) first")
    refuse_adapters(model)
    state = unsupported_state(model, meta=True)
    if state is not None:
        raise UnsupportedModelError(model, *state, "changed", cannot=_CANNOT)
    if cls not in _KNOWN:
        known = ", ".join(each.__name__ for each in _KNOWN)
        raise UnsupportedModelError(
            model, f"where a {name} adds position embeddings to its patches is not known", f"supported are timm's "
            f"{known}", cannot=_CANNOT,
        )  # fmt: skip
    embed = model.patch_embed
    if host_class(embed) is not PatchEmbed:
        raise UnsupportedModelError(
            model, f"its patch embedding is a {host_class(embed).__name__}, which does more than project patches",
            "take a model with timm's PatchEmbed", cannot=_CANNOT,
        )  # fmt: skip
    if has_own_forward(embed) or has_own_forward(model) or hasattr(embed, "placement"):
        raise UnsupportedModelError(
            model, "another tool changed its patch embedding or its forward, which would hide the placing",
            "place before that tool", "changed", cannot=_CANNOT,
        )  # fmt: skip
    if embed.dynamic_img_pad:
        raise UnsupportedModelError(
            model, "it pads images to whole patches", "make it with dynamic_img_pad=False", cannot=_CANNOT
        )
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
        raise UnsupportedModelError(
            model, "its patch_drop_rate leaves tokens out in training", "make it with 0 and place fewer tokens",
            cannot=_CANNOT,
        )  # fmt: skip
    if model.pos_drop.p > 0:
        raise UnsupportedModelError(
            model, f"its pos_drop_rate ({model.pos_drop.p}) would drop position embeddings apart from tokens",
            "make it with pos_drop_rate=0", cannot=_CANNOT,
        )  # fmt: skip
    if getattr(model, "rope", None) is not None and not model.dynamic_img_size:
        reason = too_long_a_step(model, embed.grid_size)
        if reason is not None:
            raise UnsupportedModelError(model, reason, "or a model of smaller patches", "grid", cannot=_CANNOT)


def _check_numbers(host: Host, embed: Any, settings: PlacingSettings) -> None:
    """Refuse more tokens than patches, fewer than a merger gives, and windows larger than the image."""
    patches = embed.num_patches
    if settings.num_tokens > patches:
        raise ValueError(
            f"num_tokens ({settings.num_tokens}) is more than the {patches} patches of the plain model: placing is for "
            f"fewer tokens; give from 1 to {patches}"
        )
    first = next((block.merge_state for block in host.blocks if is_merging(block)), None)
    arriving = settings.num_tokens
    if first is not None and first.num_kept_prefix_tokens == 0:
        arriving += host.num_prefix_tokens
    if first is not None and first.num_tokens > arriving:
        raise ValueError(
            f"num_tokens ({settings.num_tokens}) is less than the {first.num_tokens} tokens that the first merger gives"
        )
    if settings.window is not None and any(w > s for w, s in zip(settings.window, embed.img_size, strict=True)):
        raise ValueError(f"window {settings.window} is larger than the images {tuple(embed.img_size)}")


def _tell_blocks(model: nn.Module) -> None:
    """Tell the blocks that merge, and those after them, how many tokens there are now and where."""
    host = find_host(model)
    for block in host.blocks:
        state = getattr(block, "merge_state", None)
        if state is None:
            continue
        grid = None if state.grid is None else PatchGrid(None if host.grid == "varies" else host.grid)
        block.merge_state = replace(state, num_patches=host.num_patches, grid=grid)
