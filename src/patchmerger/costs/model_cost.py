"""What a Vision Transformer costs, part by part, and how much a merger saves; formulas: ``block_costs.py``."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from timm.layers.patch_embed import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from patchmerger.costs.block_costs import (
    PartFlops,
    Source,
    block_flops,
    embedding_flops,
    head_flops,
    merger_flops,
    on_meta,
    pool_flops,
)
from patchmerger.costs.counting import count_parts, count_plain
from patchmerger.hosts import Host, block_names, find_host
from patchmerger.hosts.example_inputs import example_input
from patchmerger.inserted import mergers

if TYPE_CHECKING:
    from rich.table import Table


_HEAD_NAMES = ("norm", "fc_norm", "head", "head_dist")


@dataclass(frozen=True)
class PartCost:
    """Cost of one part of a model, for one image.

    Attributes:
        name: Its name in the model: ``patch_embed`` (with the prefix tokens, the position embedding and the norm
            before the blocks), ``blocks.0``, ``blocks.5.merger``, ``attn_pool``, ``head`` (with the final norm).
        tokens_in: Tokens that come in; for ``patch_embed`` the patches.
        tokens_out: Tokens that go on, prefix tokens counted in.
        flops: 1 multiply-add = 2 FLOPs.
        params: Parameters of this part; those shared with an earlier part are counted there.
        source: ``"formula"``, or ``"counted"`` by ``torch.utils.flop_counter`` where no formula is known.
    """

    name: str
    tokens_in: int
    tokens_out: int
    flops: int
    params: int
    source: Source


@dataclass(frozen=True)
class Cost:
    """Cost of a model for the inference of one image.

    Attributes:
        image_size: Height and width in pixels.
        parts: The model's parts in the order in which they run.
        plain_flops: FLOPs of the same model without its mergers.
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
        """Parameters of the model."""
        return sum(part.params for part in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens that enter the first block, prefix tokens counted in."""
        return self.parts[0].tokens_out

    @property
    def tokens_out(self) -> int:
        """Tokens that leave the last block, after its merges."""
        return next(p.tokens_out for p in reversed(self.parts) if p.name not in ("attn_pool", "head"))

    @property
    def speedup(self) -> float:
        """Predicted speed-up: FLOPs without the mergers divided by FLOPs with them."""
        return self.plain_flops / self.flops

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain Python values, for JSON."""
        return {
            "image_size": list(self.image_size),
            "tokens": self.tokens,
            "tokens_out": self.tokens_out,
            "flops": self.flops,
            "plain_flops": self.plain_flops,
            "speedup": self.speedup,
            "params": self.params,
            "parts": [asdict(part) for part in self.parts],
        }

    def __str__(self) -> str:
        """A table with a row for each run of equal parts."""
        from rich.table import Table

        height, width = self.image_size
        table = Table(title=f"Cost of one image of {height} × {width} pixels", title_justify="left")
        table.add_column("part")
        for column in ("tokens", "GFLOPs", "share", "parameters"):
            table.add_column(column, justify="right")
        for _, run in groupby(self.parts, key=lambda p: (p.tokens_in, p.tokens_out, p.flops, p.params, p.source)):
            parts = list(run)
            first, flops = parts[0], sum(part.flops for part in parts)
            name = first.name if len(parts) == 1 else f"{first.name} … {parts[-1].name} ({len(parts)}×)"
            tokens = f"{first.tokens_in}" + (f" → {first.tokens_out}" * (first.tokens_in != first.tokens_out))
            table.add_row(
                name + " (counted)" * (first.source == "counted"),
                tokens,
                f"{flops / 1e9:.3f}",
                f"{flops / self.flops:.1%}",
                f"{sum(part.params for part in parts):,}",
            )
        table.add_section()
        table.add_row(
            "all", f"{self.tokens} → {self.tokens_out}", f"{self.flops / 1e9:.3f}", "100.0%", f"{self.params:,}"
        )
        ending = f"{self.speedup:.3f}× fewer FLOPs than the {self.plain_flops / 1e9:.3f} GFLOPs without a merger"
        return table_text(table) + (ending if self.plain_flops != self.flops else "no merger")


def cost(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Cost:
    """Tokens, FLOPs and parameters of a Vision Transformer, part by part, for the inference of one image.

    Nothing runs but parts without a known formula, and those on the meta device: any device will do, ``meta`` too.
    The formulas stand in ``patchmerger.costs.block_costs``; they equal ``torch.utils.flop_counter``. Normalisation,
    softmax, activations and additions are not counted there either.

    Args:
        model: A supported Vision Transformer, with or without mergers; it is not changed.
        image_size: Pixels, one number or (height, width); ``None`` is the model's own. Another size is computed as
            if the model's input size were set to it: the position embedding grows with it, except in a model
            with ``dynamic_img_size``, which takes images of any size as it is.

    Returns:
        The cost, with the speed-up predicted against the same model without its mergers.

    Raises:
        UnsupportedModelError: The model cannot take a merger.
        ValueError: ``image_size`` does not divide by the patch size, or makes fewer tokens than a merger gives.
    """
    host = find_host(model)
    if not isinstance(model, VisionTransformer):
        return _counted_cost(model, None if image_size is None else _size(image_size))
    size = _size(model.patch_embed.img_size if image_size is None else image_size)
    embedding = embedding_flops(model.patch_embed, size, _grid(model, size), host.dim)
    parameters = _parameters(model, host, embedding.tokens)
    tokens = embedding.tokens + host.num_prefix_tokens
    parts = [
        PartCost("patch_embed", embedding.tokens, tokens, embedding.flops, parameters["patch_embed"], embedding.source)
    ]
    plain_flops = embedding.flops
    inserted = {merger.after: merger for merger in mergers(model)}
    for index, (name, block) in enumerate(zip(block_names(model, host), host.blocks, strict=True)):
        plain_flops += block_flops(block, parts[0].tokens_out, host.dim).flops
        flops = block_flops(block, tokens, host.dim)
        parts.append(PartCost(name, tokens, tokens, flops.flops, parameters[name], flops.source))
        if merger := inserted.get(index + 1):
            passing, merged = merger.num_kept_prefix_tokens, merger.num_tokens
            if tokens - passing < merged:
                raise ValueError(
                    f"image_size {size} brings {tokens - passing} tokens to {merger.name}, fewer than the "
                    f"num_tokens ({merged}) that it gives: take larger images or a smaller num_tokens"
                )
            flops = merger_flops(merger.module, tokens - passing, merged, host.dim)
            params = parameters[merger.name]
            parts.append(PartCost(merger.name, tokens, passing + merged, flops.flops, params, flops.source))
            tokens = passing + merged
    plain_flops += sum(flops.flops for _, flops, _ in _ending(model, host, parts[0].tokens_out))
    for name, flops, tokens_in in _ending(model, host, tokens):
        parts.append(PartCost(name, tokens_in, flops.tokens, flops.flops, parameters[name], flops.source))
    return Cost(size, tuple(parts), plain_flops)


def _ending(model: VisionTransformer, host: Host, tokens: int) -> list[tuple[str, PartFlops, int]]:
    """Pooling and head on the tokens that leave the blocks: name, FLOPs and tokens out, tokens in."""
    parts: list[tuple[str, PartFlops, int]] = []
    attn_pool: nn.Module | None = model.attn_pool
    heads: list[nn.Module] = [model.head]
    outputs = tokens if model.global_pool == "" else 1  # without pooling, each token has a prediction
    if attn_pool is not None:
        pooled = tokens if model.pool_include_prefix else tokens - host.num_prefix_tokens
        parts.append(("attn_pool", pool_flops(attn_pool, pooled, host.dim), pooled))
        tokens = outputs = parts[-1][1].tokens
    if isinstance(model, VisionTransformerDistilled):
        heads, outputs = [model.head, model.head_dist], 1
    flops = [head_flops(head, outputs, host.dim) for head in heads]
    source: Source = "counted" if any(f.source == "counted" for f in flops) else "formula"
    parts.append(("head", PartFlops(sum(f.flops for f in flops), outputs, source), tokens))
    return parts


def _counted_cost(model: nn.Module, size: tuple[int, int] | None) -> Cost:
    """The cost of a model whose parts have no formulas here."""
    counted = count_parts(model, size)
    parts = [PartCost(p.name, p.tokens_in, p.tokens_out, p.flops, p.params, "counted") for p in counted]
    height, width = example_input(on_meta(model), size).images.shape[-2:]
    return Cost((int(height), int(width)), tuple(parts), count_plain(model, size))


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size ({height}, {width}) must be at least one pixel high and wide")
    return int(height), int(width)


def _grid(model: VisionTransformer, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches that a plain ``PatchEmbed`` makes of an image."""
    embed: Any = model.patch_embed
    rows, columns = (-(-pixels // patch) for pixels, patch in zip(size, embed.patch_size, strict=True))
    even = all(pixels % patch == 0 for pixels, patch in zip(size, embed.patch_size, strict=True))
    # A position embedding of fixed size has no place for patches that are padded.
    pads = embed.dynamic_img_pad and (model.dynamic_img_size or model.pos_embed is None)
    if even or pads or type(embed) is not PatchEmbed:
        return rows, columns
    if size == tuple(embed.img_size) and embed.strict_img_size and not embed.dynamic_img_pad:
        # The last pixels of such a model's images are cut off.
        return size[0] // embed.patch_size[0], size[1] // embed.patch_size[1]
    raise ValueError(
        f"image_size {size} does not divide by the patch size {tuple(embed.patch_size)}: "
        f"the next sizes that do are {_multiples(size, embed.patch_size)}"
    )


def _multiples(size: tuple[int, int], patch: tuple[int, int]) -> str:
    below = tuple(s // p * p for s, p in zip(size, patch, strict=True))
    above = tuple(-(-s // p) * p for s, p in zip(size, patch, strict=True))
    return f"{below} and {above}" if all(below) else f"{above}"


def _parameters(model: VisionTransformer, host: Host, num_patches: int) -> dict[str, int]:
    """Parameters by part; the position embedding as it is for ``num_patches``."""
    names = [merger.name for merger in mergers(model)]
    names += [*block_names(model, host), "attn_pool"]
    counts = dict.fromkeys(["patch_embed", *names, "head"], 0)
    for key, parameter in model.named_parameters():
        part = next((name for name in names if key.startswith(name + ".")), "patch_embed")
        counts["head" if key.split(".")[0] in _HEAD_NAMES else part] += parameter.numel()
    if model.pos_embed is not None and not model.dynamic_img_size:
        embedded = num_patches + (0 if model.no_embed_class else host.num_prefix_tokens)
        counts["patch_embed"] += embedded * host.dim - model.pos_embed.numel()
    return counts


def table_text(table: Table) -> str:
    """A rich table as text, without colours and as wide as it needs."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
