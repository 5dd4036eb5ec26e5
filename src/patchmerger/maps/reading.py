"""Merge maps: the weights A of a model's mergers, composed back to the patches and laid out on their grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule

from patchmerger.hosts import find_host
from patchmerger.hosts.state import without_peft
from patchmerger.insertion.inserted import InsertedMerger, mergers
from patchmerger.mechanism.blocks import MergingBlock
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.patch_grid import PatchGrid
from patchmerger.mechanism.placed_tokens import between_patches
from patchmerger.mechanism.recording import recorded_weights, tells_weights
from patchmerger.mechanism.subclassing import host_class
from patchmerger.prior import GridPrior

Images: TypeAlias = Tensor | Mapping[str, Any]
"""What a model takes: normalised images (B, C, H, W), or the named inputs of models that take several."""


@dataclass(frozen=True)
class MergerMaps:
    """What each token of one merger is made of, patch by patch.

    Shapes: B images, M tokens, rows × columns of patches, P prefix tokens that were merged with the patches.

    Attributes:
        name: The merger's name in the model, such as ``"blocks.5.merger"``.
        after: The block that it stands after, counted from 1.
        reducer: The name of its class, such as ``"PatchMerger"``.
        maps: A on the grid of patches, (B, M, rows, columns), through all mergers before: how much of each patch is in
            each token. With the prefix tokens' weights the sum of a map is 1.
        is_patch: (B, rows, columns) bool: where there is a patch; all True unless the images of a batch differ in size.
        prefix_weights: The weights of prefix tokens that were merged, (B, M, P); P is 0 where those are kept.
        centers: Of located queries the places, row and column from 0 to 1, (M, 2), of several
            heads their mean, as in the maps; else ``None``.
        widths: Of located queries the widths in rows and columns, as shares of the image, (M, 2), of several heads that
            of what they see together; else ``None``.
        places: Where tokens were placed (``patchmerger.place``) and are no patches: the middles of their windows, row
            and column from 0 to 1, (B, N, 2); each then counts in ``maps`` for the patches around it. Else ``None``.
    """

    name: str
    after: int
    reducer: str
    maps: Tensor = field(repr=False)
    is_patch: Tensor = field(repr=False)
    prefix_weights: Tensor = field(repr=False)
    centers: Tensor | None = field(default=None, repr=False)
    widths: Tensor | None = field(default=None, repr=False)
    places: Tensor | None = field(default=None, repr=False)


def merge_maps(model: nn.Module, images: Images, *, grid: tuple[int, int] | None = None) -> Tensor:
    """Which patches went into each token: A on the grid of patches.

    Several mergers are composed, ``A = A_last … A_2 A_1``: the maps are those of the tokens that leave the last one.
    :func:`read_maps` gives those of each merger. The model runs once, in eval mode and eager, and is left as it was:
    no hooks, no other classes, and compiled graphs untouched.

    Args:
        model: A supported model with mergers, compiled or not.
        images: What the model takes, normalised images (B, 3, H, W), say, on its device; a mapping where it takes
            several named inputs (NaFlex).
        grid: Rows and columns of the patches, where the model's description does not say them.

    Returns:
        (B, M, H / patch, W / patch), at least float32, no gradient. Each map sums to 1, less what prefix tokens have
        that were merged too. Where the images of a batch differ in size, smaller ones lie at the top left, with zeros
        around.

    Raises:
        ValueError: The model has no merger, or one that does not tell its weights; the grid of patches is not known,
            or another one than ``grid``.
        UnsupportedModelError: The model is not supported, so it has no merger either.

    Example::

        maps = merge_maps(model, images)  # (B, M, rows, columns)
        leading = maps.argmax(dim=1)  # the token that takes most of each patch

    Source: the weights A of Renggli et al., arXiv 2202.12015, section 3.
    """
    return read_maps(model, images, grid=grid)[-1].maps


@torch.no_grad()
def read_maps(
    model: nn.Module,
    images: Images,
    *,
    grid: tuple[int, int] | None = None,
    run: Callable[[], object] | None = None,
) -> list[MergerMaps]:
    """The maps of each merger, first to last, each composed back to the patches; see :func:`merge_maps`.

    Args:
        model: As for :func:`merge_maps`.
        images: As for :func:`merge_maps`.
        grid: As for :func:`merge_maps`.
        run: Runs the model on the images, in place of ``model(images)``: for one who wants what it gives, too.

    Raises:
        ValueError: As for :func:`merge_maps`.
        UnsupportedModelError: As for :func:`merge_maps`.
    """
    if isinstance(model, OptimizedModule):
        model = model._orig_mod
    present = mergers(model)
    _check_mergers(model, present)
    host = find_host(without_peft(model))
    blocks = {merger.after: cast(MergingBlock, host.blocks[merger.after - 1]) for merger in present}
    first = blocks[present[0].after]
    told = first.merge_state.grid or PatchGrid(None if host.grid == "varies" else host.grid, only_told=True)
    with recorded_weights(model, blocks, told) as weights, eval_mode(model):
        _run(model, images) if run is None else run()
    prefix = 0 if present[0].num_kept_prefix_tokens else host.num_prefix_tokens
    layout = _layout(model, weights[present[0].after], prefix, told, grid)
    found, through = [], None
    for merger in present:
        a = weights[merger.after]  # (B, M, N), N the tokens of the merger before
        through = a if through is None else a @ through.to(a.dtype)  # (B, M, P + N) of the first merger
        prior = getattr(merger.module, "prior", None)
        centers, widths = _places(prior, a.shape[1]) if isinstance(prior, GridPrior) else (None, None)
        found.append(
            MergerMaps(
                name=merger.name,
                after=merger.after,
                reducer=type(merger.module).__name__,
                maps=layout.lay_out(through[:, :, prefix:]),
                is_patch=layout.is_patch(),
                prefix_weights=through[:, :, :prefix],
                centers=centers,
                widths=widths,
                places=told.positions if told.placed_in is not None else None,
            )
        )
    return found


@torch.no_grad()
def _places(prior: GridPrior, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Centres and widths of M queries, (M, 2); of several heads the mean and standard deviation of what they see."""
    center = prior.center.reshape(num_tokens, -1, 2)  # (M, H, 2)
    width = prior.log_width.exp().reshape(num_tokens, -1, 2)
    mean = center.mean(dim=1)
    return mean, (width.square() + (center - mean[:, None]).square()).mean(dim=1).sqrt()


def _check_mergers(model: nn.Module, present: list[InsertedMerger]) -> None:
    name = host_class(model).__name__
    if not present:
        raise ValueError(
            f"model ({name}) has no merger, so there is nothing to show: patchmerger.insert(model, num_tokens=8) puts "
            "one in, and patchmerger accelerate trains one into a trained model"
        )
    silent = [merger for merger in present if not tells_weights(merger.module)]
    if silent:
        raise ValueError(
            f"{silent[0].name} ({type(silent[0].module).__name__}) does not tell what it merges: give its forward a "
            "return_weights that returns (Y, A)"
        )


def _run(model: nn.Module, images: Images) -> None:
    """One forward pass. timm takes the inputs of NaFlex as one mapping, transformers by name."""
    if isinstance(images, Mapping) and not host_class(without_peft(model)).__module__.startswith("timm."):
        model(**images)
    else:
        model(images)


@dataclass(frozen=True)
class _Layout:
    """Where on the grid each patch lies: rows and columns of each image, (B, 2), and row by row its number, (B, N).

    Where tokens are placed, ``shares`` has in place of it how much of each patch is at each, (B, N, rows · columns).
    """

    sizes: Tensor
    index: Tensor
    shares: Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        rows, columns = self.sizes.amax(dim=0).tolist()
        return int(rows), int(columns)

    def lay_out(self, weights: Tensor) -> Tensor:
        """(B, M, N) → (B, M, rows, columns)."""
        rows, columns = self.grid
        if self.shares is not None:
            return (weights @ self.shares.to(weights.dtype)).reshape(*weights.shape[:2], rows, columns)
        maps = weights.new_zeros(*weights.shape[:2], rows * columns)
        index = self.index[:, None].expand(-1, weights.shape[1], -1)  # (B, M, N)
        maps = maps.scatter_add(2, index, weights)  # padding adds its zero weight
        return maps.reshape(*weights.shape[:2], rows, columns)

    def is_patch(self) -> Tensor:
        """(B, rows, columns)."""
        rows, columns = self.grid
        row = torch.arange(rows, device=self.sizes.device)[:, None] < self.sizes[:, 0, None, None]  # (B, rows, 1)
        column = torch.arange(columns, device=self.sizes.device) < self.sizes[:, 1, None, None]  # (B, 1, columns)
        return row & column


def _layout(model: nn.Module, weights: Tensor, prefix: int, told: PatchGrid, given: tuple[int, int] | None) -> _Layout:
    images, _, arriving = weights.shape
    patches = arriving - prefix
    if told.positions is not None and told.placed_in is not None:
        return _between_patches(told.positions, told.placed_in)
    if told.positions is not None:
        return _of_places(told.positions)
    size = told.size or given
    name = host_class(model).__name__
    if size is None:
        raise ValueError(
            f"grid (None) must be given, rows and columns of the {patches} patches: the description of {name} does not "
            "say them"
        )
    if given is not None and tuple(given) != tuple(size):
        raise ValueError(f"grid ({given}) is not that of {name}, whose patches are {size[0]} × {size[1]}: leave it out")
    rows, columns = size
    if rows * columns != patches:
        raise ValueError(
            f"{patches} patches came to the first merger of {name}, which are no grid of {rows} × {columns}: patches "
            "were left out or added on the way, so that their places are not known"
        )
    sizes = torch.tensor([[rows, columns]], device=weights.device).expand(images, 2)
    return _Layout(sizes, torch.arange(patches, device=weights.device).expand(images, patches))


def _of_places(places: Tensor) -> _Layout:
    """From the middles of patches, (B, N, 2) from 0 to 1: the first row's is 0.5 / rows."""
    sizes = (0.5 / places.amin(dim=1)).round().long()  # (B, 2)
    coordinates = (places * sizes[:, None]).floor().long()  # (B, N, 2)
    coordinates = torch.minimum(coordinates, sizes[:, None] - 1)  # padding may lie beyond
    return _Layout(sizes, coordinates[..., 0] * sizes[:, 1].amax() + coordinates[..., 1])


def _between_patches(places: Tensor, grid: tuple[int, int]) -> _Layout:
    """Of tokens that were placed, (B, N, 2): each is shared out over the patches around it."""
    low = 0.5 / torch.tensor(grid, dtype=places.dtype, device=places.device)  # the middle of the first patch
    shares = between_patches(places.clamp(low, 1 - low), grid)
    sizes = torch.tensor([grid], device=places.device).expand(len(places), 2)
    return _Layout(sizes, torch.empty(0, dtype=torch.long), shares)
