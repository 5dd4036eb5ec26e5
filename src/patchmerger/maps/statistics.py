"""What the tokens of each merger take over a dataset: do they specialise, or do all look at the same patches?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from patchmerger.diagnosis import effective_ranks, similarities
from patchmerger.maps.measures import effective_patches, shares, taken, unused
from patchmerger.maps.reading import MergerMaps, read_maps


@dataclass(frozen=True)
class MapStatistics:
    """The merge maps of one merger over some images; means over the images.

    Attributes:
        name: The merger's name in the model.
        after: The block that it stands after, counted from 1.
        images: The number of images.
        mean_maps: The mean map of each token, (M, rows, columns).
        mean_taken: How much of each patch all tokens take, in units of an equal share, (rows, columns).
        shares: The share of patches that each token leads, (M,).
        effective_patches: How many patches each token takes, (M,): the exponential of its map's entropy.
        steadiness: How alike a token's maps of different images are, (M,): the mean cosine between its map and its
            mean map. 1 where it takes the same places in every image; low where it follows what the image shows.
        effective_rank: How many different mixtures the M tokens are, from 1 to M.
        similarity: Mean cosine between the maps of two tokens; ``None`` for M = 1.
        unused: The share of patches that next to nothing of is taken.
    """

    name: str
    after: int
    images: int
    mean_maps: Tensor
    mean_taken: Tensor
    shares: Tensor
    effective_patches: Tensor
    steadiness: Tensor
    effective_rank: float
    similarity: float | None
    unused: float

    def as_dict(self) -> dict[str, Any]:
        """Everything but the maps, as plain Python values."""
        plain = {name: value for name, value in vars(self).items() if name not in ("mean_maps", "mean_taken")}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in plain.items()}


def map_statistics(model: nn.Module, batches: Iterable[Tensor]) -> list[MapStatistics]:
    """Statistics of each merger's maps over images.

    Args:
        model: A supported model with mergers.
        batches: Normalised images of one size, (B, 3, H, W) each, on the model's device.

    Returns:
        One for each merger, first to last.

    Raises:
        ValueError: No images, images of several sizes, or as for :func:`~patchmerger.maps.merge_maps`.
    """
    sums: list[_Sums] = []
    for images in batches:
        found = read_maps(model, images)
        sums = sums or [_Sums(maps) for maps in found]
        for each, maps in zip(sums, found, strict=True):
            each.add(maps)
    if not sums:
        raise ValueError("batches is empty: there is no image to take statistics over")
    return [each.means() for each in sums]


class _Sums:
    """Sums over images, in float64 on the CPU: not every device (MPS) has that."""

    def __init__(self, first: MergerMaps) -> None:
        self.name, self.after, self.grid = first.name, first.after, first.maps.shape[1:]
        self.images = 0
        self.totals: dict[str, Tensor] = {}

    def add(self, found: MergerMaps) -> None:
        maps, is_patch = found.maps.cpu().double(), found.is_patch.cpu()
        if maps.shape[1:] != self.grid or not is_patch.all():
            raise ValueError(
                f"batches hold images of several sizes: maps are {tuple(maps.shape[1:])} in one and {tuple(self.grid)} "
                "in another; give images of one size"
            )
        rows = maps.flatten(2)
        alike = similarities(rows)
        values = {
            "maps": maps,
            # The cosine of a map with the mean map is linear in the map once that has length 1.
            "unit": nn.functional.normalize(rows, dim=2).reshape(maps.shape),
            "taken": taken(maps, is_patch),
            "shares": shares(maps, is_patch).double(),
            "patches": effective_patches(maps),
            "rank": effective_ranks(rows),
            "unused": unused(maps, is_patch).double().mean(dim=(1, 2)),
        }
        if alike is not None:
            values["alike"] = alike
        for name, value in values.items():
            total = value.sum(dim=0)
            self.totals[name] = total + self.totals[name] if name in self.totals else total
        self.images += len(maps)

    def means(self) -> MapStatistics:
        mean = {name: total / self.images for name, total in self.totals.items()}
        direction = nn.functional.normalize(mean["maps"].flatten(1), dim=1)  # (M, N)
        return MapStatistics(
            name=self.name,
            after=self.after,
            images=self.images,
            mean_maps=mean["maps"].float(),
            mean_taken=mean["taken"].float(),
            shares=mean["shares"],
            effective_patches=mean["patches"],
            steadiness=(mean["unit"].flatten(1) * direction).sum(dim=1),
            effective_rank=float(mean["rank"]),
            similarity=float(mean["alike"]) if "alike" in mean else None,
            unused=float(mean["unused"]),
        )
