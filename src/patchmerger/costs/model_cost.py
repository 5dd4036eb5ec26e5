"""What a Vision Transformer costs, part by part, and how much its mergers save."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from timm.layers.patch_embed import PatchEmbed
from torch import nn

from patchmerger.costs.counting import PartCost, count_parts, on_meta
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.hosts.example_inputs import check_patches, fit_to_size, image_size_of, size_in
from patchmerger.hosts.state import has_adapters
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.placed_tokens import placed_embedding
from patchmerger.mechanism.subclassing import host_class
from patchmerger.placing.in_model import plain_model
from patchmerger.runs.serialisation import to_json
from patchmerger.runs.text import text_table


@dataclass(frozen=True)
class Cost:
    """Cost of a model for the inference of one image; of one that compares images with texts, for the image alone.

    Attributes:
        image_size: Height and width in pixels.
        parts: The model's parts in the order in which they run.
        plain_flops: FLOPs of the same model without its mergers, and with the patches of its grid for placed tokens.
    """

    image_size: tuple[int, int]
    parts: tuple[PartCost, ...]
    plain_flops: int

    @property
    def flops(self) -> int:
        """FLOPs of one image, 1 multiply-add = 2 FLOPs."""
        return sum(part.flops for part in self.parts)

    @property
    def params(self) -> int:
        """Parameters of the model, those that see images."""
        return sum(part.params for part in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens that enter the first block, prefix tokens counted in."""
        return self.parts[0].tokens_out

    @property
    def tokens_out(self) -> int:
        """Tokens that leave the last block, after its merges."""
        return self.parts[-1].tokens_in

    @property
    def block_tokens(self) -> tuple[int, ...]:
        """Tokens that enter each block, first to last, prefix tokens counted in."""
        return tuple(part.tokens_in for part in self.parts[1:-1] if not part.name.endswith(".merger"))

    @property
    def speedup(self) -> float:
        """Predicted speed-up: FLOPs of the plain model divided by those of this one."""
        return self.plain_flops / self.flops

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        derived = ("tokens", "tokens_out", "flops", "speedup", "params")
        return {**to_json(self), **{name: getattr(self, name) for name in derived}}

    def __str__(self) -> str:
        """A table with a row for each run of equal parts."""
        height, width = self.image_size
        rows = [("part", "tokens", "GFLOPs", "share", "parameters")]
        for _, run in groupby(self.parts, key=lambda p: (p.tokens_in, p.tokens_out, p.flops, p.params)):
            parts = list(run)
            first, flops = parts[0], sum(part.flops for part in parts)
            name = first.name if len(parts) == 1 else f"{first.name} … {parts[-1].name} ({len(parts)}×)"
            tokens = f"{first.tokens_in}" + (f" → {first.tokens_out}" * (first.tokens_in != first.tokens_out))
            params = sum(part.params for part in parts)
            rows.append((name, tokens, f"{flops / 1e9:.3f}", f"{flops / self.flops:.1%}", f"{params:,}"))
        tokens = f"{self.tokens} → {self.tokens_out}"
        rows.append(("all", tokens, f"{self.flops / 1e9:.3f}", "100.0%", f"{self.params:,}"))
        saved = f"{self.speedup:.3f}× fewer FLOPs than the {self.plain_flops / 1e9:.3f} GFLOPs of the plain model"
        return (
            f"Cost of one image of {height} × {width} pixels\n{text_table(rows, with_total=True)}\n"
            f"{saved if self.plain_flops != self.flops else 'no merger, no placed tokens'}"
        )


def cost(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Cost:
    """Tokens, FLOPs and parameters of a Vision Transformer, part by part, for the inference of one image.

    A copy without weights runs once on the meta device under ``torch.utils.flop_counter``, and once more without its
    mergers: any device will do, ``meta`` too, and nothing is computed. Matrix products and convolutions count;
    normalisation, softmax, activations and additions do not.

    Args:
        model: A supported Vision Transformer, with or without mergers; it is not changed.
        image_size: Pixels, one number or (height, width); ``None`` is the model's own. Another size is counted as
            if the model's input size were set to it: the position embedding grows with it, except in a model
            with ``dynamic_img_size``, which takes images of any size as it is.

    Returns:
        The cost, with the speed-up predicted against the same model without its mergers and placed tokens.

    Raises:
        UnsupportedModelError: The model cannot take a merger.
        ValueError: ``image_size`` does not divide by the patch size, or makes fewer tokens than a merger gives.
    """
    if has_adapters(model):
        raise ValueError(
            f"model ({host_class(model).__name__}) has adapters of PEFT, which cost nothing once "
            "they are merged into the weights: give model.merge_and_unload()"
        )
    find_host(model)
    clone = on_meta(model)
    size = size_in(image_size)
    if size is not None:
        _check_fit(clone, size)
    known: dict[Any, int] = {}
    parts = count_parts(fit_to_size(clone, size), size, known)
    merging = {part.name: part for part in parts}
    for merger in mergers(clone):
        if merger.name not in merging:
            continue  # as many tokens arrive as go on: it is not called
        arriving = merging[merger.name].tokens_in - merger.num_kept_prefix_tokens
        if arriving < merger.num_tokens:
            raise ValueError(
                f"image_size {size} brings {arriving} tokens to {merger.name}, fewer than the num_tokens "
                f"({merger.num_tokens}) that it gives: take larger images or a smaller num_tokens"
            )
    changed = bool(mergers(clone)) or placed_embedding(clone) is not None
    flops = sum(part.flops for part in (count_parts(plain_model(clone), size, known) if changed else parts))
    return Cost(size or image_size_of(clone), tuple(parts), flops)


def known_flops(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> int | None:
    """FLOPs of one image, as :func:`cost` counts them; ``None`` for a model that cannot take a merger."""
    try:
        return cost(model, image_size).flops
    except UnsupportedModelError:
        return None


def _check_fit(model: Any, size: tuple[int, int]) -> None:
    """Refuse a size that the model's patches do not fill."""
    embed: Any = getattr(model, "patch_embed", None)
    if host_class(embed) is PatchEmbed and size != tuple(embed.img_size or ()):
        # A position embedding of fixed size has no place for patches that are padded.
        pads = embed.dynamic_img_pad and (model.dynamic_img_size or model.pos_embed is None)
        if not pads:
            check_patches(model, size)
