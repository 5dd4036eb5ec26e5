"""Start a merger in a trained model well: queries from the model's own features, in place of noise. No labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.insertion import InsertedMerger, mergers, remove
from patchmerger.merger import PatchMerger
from patchmerger.outputs import Classifier, divergence, feature_error
from patchmerger.seams import host_class
from patchmerger.shortcut import Shortcut
from patchmerger.starts import kmeans_directions, spatial_directions, whitened_directions

Start: TypeAlias = Literal["best", "reconstruction", "kmeans", "spatial", "random"]

SHARPNESS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Standard deviations of the scores that are tried; queries drawn at random have 1."""

BEST: Start = "reconstruction"
"""What ``start="best"`` is: measured to be the best before any training and after a short one (docs/accelerate.md)."""


@dataclass(frozen=True)
class Calibrated:
    """How the queries of one merger were set.

    Attributes:
        name: The merger's name in the model.
        start: What was chosen, ``"kmeans-whitened"`` say, with ``", reconstruction"`` where steps followed.
        sharpness: Standard deviation of the scores before any steps; ``None`` for random queries.
        random: Divergence from the plain model with the queries as they were, in nats (see ``outputs.divergence``).
        started: The same with the chosen directions and sharpness.
        divergence: The same at the end.
        norm_ratio: Length of the merged tokens / length of those that arrive: 1 keeps the scale of the model.
        tried: The divergence of every pair of directions and sharpness.
    """

    name: str
    start: str
    sharpness: float | None
    random: float
    started: float
    divergence: float
    norm_ratio: float
    tried: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` did.

    Attributes:
        start: The start that was asked for.
        images: Calibration images.
        mergers: One for each merger, first to last.
    """

    start: Start
    images: int
    mergers: tuple[Calibrated, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def calibrate(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    start: Start = "best",
    plain: nn.Module | None = None,
    sharpness: Iterable[float] = SHARPNESS,
    steps: int = 300,
    lr: float = 0.1,
    batch_size: int = 64,
    multi_label: bool = False,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Set the queries of the mergers in a trained model from its own features, in place.

    Nothing else in the model changes, and no labels are needed: of the starts below and of their sharpness those are
    taken with which the scores of the merged model differ least from those of the plain one, on these images.

    - ``"kmeans"``: centres of clusters of the normalised tokens that arrive at the merger, less their mean, in the
      tokens' own coordinates or whitened, whichever differs less;
    - ``"spatial"``: what tells the tokens of one region of the image from the others;
    - ``"reconstruction"``: the best of these, then ``steps`` steps of Adam on the queries alone that bring scores
      and pooled features closer to the plain model's;
    - ``"random"``: drawn anew, the reference;
    - ``"best"``: what was measured to be best: :data:`BEST`.

    Args:
        model: A model with at least one PatchMerger; several are set first to last.
        images: Normalised images as the model takes them, (n, 3, S, S), or batches of them: some hundreds.
        start: See above.
        plain: The model to be matched; by default ``model`` without its mergers.
        sharpness: Standard deviations of the scores that are tried.
        steps: Steps of reconstruction.
        lr: Their learning rate, relative to the size of the queries.
        batch_size: Images that run at once.
        multi_label: Whether the scores are a yes or no for each class.
        seed: Of everything random.
        progress: Called with what is done and the share of it that is.

    Returns:
        What was chosen, and how far from the plain model each choice was.

    Raises:
        ValueError: No merger, another reducer than PatchMerger, too few or wrong images, or an unknown ``start``.
    """
    if start not in get_args(Start):
        raise ValueError(f"start ({start!r}) must be one of {', '.join(map(repr, get_args(Start)))}")
    tried = tuple(sharpness)
    if not tried or min(tried) <= 0:
        raise ValueError(f"sharpness ({list(tried)}) must be at least one number above 0")
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps ({steps}) must be at least 1 and lr ({lr}) above 0")
    present = _queried(model)
    batches = _batches(model, images, batch_size)
    plain = remove(copy.deepcopy(model)) if plain is None else plain
    results = []
    with _frozen(model):
        student, teacher = Classifier(model), Classifier(plain.eval())
        with torch.no_grad():
            wanted = [teacher.with_features(batch) for batch in batches]
        for merger in present:
            search = _Search(student, merger, batches, wanted, multi_label, seed, progress or (lambda *_: None))
            results.append(search.run(BEST if start == "best" else start, tried, steps, lr))
    return Calibration(start, sum(map(len, batches)), tuple(results))


class _Search:
    """The search for the queries of one merger."""

    def __init__(
        self,
        student: Classifier,
        merger: InsertedMerger,
        batches: list[Tensor],
        wanted: list[tuple[Tensor, Tensor]],
        multi_label: bool,
        seed: int,
        progress: Callable[[str, float], None],
    ) -> None:
        self.name, self.module = merger.name, cast(PatchMerger, merger.module)
        self.shortcut = Shortcut(student, merger, batches)
        self.wanted, self.multi_label, self.seed, self.progress = wanted, multi_label, seed, progress
        self.no_scores = student.head is None
        self.grid = _grid(student.net, self.shortcut.tokens[0].shape[1])
        norm = self.module.norm or nn.Identity()
        with torch.no_grad():
            self.keys = [norm(tokens) for tokens in self.shortcut.tokens]

    def run(self, start: Start, sharpness: tuple[float, ...], steps: int, lr: float) -> Calibrated:
        """Set the queries."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.module.weight.shape, generator=generator)
        self._set(noise / (abs(self.module.scale) * self.module.dim**0.5))
        at_random, tried = self._gap(), {}
        chosen: tuple[float, str, float | None, Tensor] = (
            at_random,
            "random",
            None,
            self.module.weight.detach().clone(),
        )
        found = [] if start == "random" else list(self._directions(start).items())
        for number, (name, directions) in enumerate(found):
            unit = directions / self._spread(directions)
            for place, sharp in enumerate(sharpness):
                self._set(sharp * unit)
                gap = self._gap()
                tried[f"{name}, {sharp:g}"] = gap
                if gap < chosen[0] or (chosen[2] is None and start != "reconstruction"):
                    chosen = (gap, name, sharp, self.module.weight.detach().clone())
                done = number * len(sharpness) + place + 1
                self.progress("trying queries", done / (len(found) * len(sharpness)))
        started, name, sharp_or_none, weight = chosen
        self._set(weight)
        end = started
        if start == "reconstruction":
            end = self._reconstruct(steps, lr, started)
            name += ", reconstruction"
        return Calibrated(self.name, name, sharp_or_none, at_random, started, end, self._norm_ratio(), tried)

    def _directions(self, start: Start) -> dict[str, Tensor]:
        keys, count = torch.cat([k.flatten(0, 1) for k in self._real_keys()]), self.module.num_tokens
        found = {}
        if start in ("kmeans", "reconstruction"):
            found["kmeans"] = kmeans_directions(keys, count, seed=self.seed)
            found["kmeans-whitened"] = whitened_directions(keys, count, seed=self.seed)
        if start in ("spatial", "reconstruction") and self.grid is not None:
            found["spatial"] = spatial_directions(torch.cat(self.keys), count, grid=self.grid, seed=self.seed)
        elif start == "spatial":
            raise ValueError("start ('spatial') needs tokens in a grid, which this model's are not: take 'kmeans'")
        return found

    def _real_keys(self) -> Iterator[Tensor]:
        """Normalised tokens, (1, n, D), padding left out."""
        for keys, mask in zip(self.keys, self.shortcut.masks, strict=True):
            yield keys.flatten(0, 1)[None] if mask is None else keys[mask][None]

    def _spread(self, directions: Tensor) -> Tensor:
        """Standard deviation of the scores over tokens, all queries together."""
        keys = torch.cat([k.flatten(0, 1) for k in self._real_keys()][:8]).float()
        scores = self.module.scale * keys @ directions.to(keys.device).T
        return scores.std(dim=0).square().mean().sqrt().clamp(min=1e-12).cpu()

    def _set(self, weight: Tensor) -> None:
        with torch.no_grad():
            self.module.weight.copy_(weight.to(self.module.weight))

    @torch.no_grad()
    def _gap(self) -> float:
        gaps = [self._distance(number) * len(batch) for number, batch in enumerate(self.shortcut.batches)]
        return float(sum(gaps)) / sum(map(len, self.shortcut.batches))

    def _distance(self, batch: int, *, features_too: bool = False) -> Tensor:
        scores, features = self.shortcut.run(batch)
        target, target_features = self.wanted[batch]
        if self.no_scores:
            return feature_error(features, target_features)
        distance = divergence(scores, target, multi_label=self.multi_label)
        return distance + feature_error(features, target_features) if features_too else distance

    def _reconstruct(self, steps: int, lr: float, before: float) -> float:
        """Steps on the queries alone; their average over the last half, if that is closer than they were before."""
        weight, start = self.module.weight, self.module.weight.detach().clone()
        size = float(start.square().mean().sqrt())
        optimizer = torch.optim.Adam([weight], lr=lr * size, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = []
        with torch.enable_grad():
            weight.requires_grad_(True)
            for step in range(steps):
                order = order or torch.randperm(len(self.shortcut), generator=generator).tolist()
                optimizer.zero_grad()
                self._distance(order.pop(), features_too=True).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                self.progress("fitting queries", (step + 1) / steps)
            weight.requires_grad_(False)
            weight.grad = None
        after = self._gap()
        if after < before:
            return after
        self._set(start)
        return before

    @torch.no_grad()
    def _norm_ratio(self) -> float:
        tokens, mask = self.shortcut.tokens[0], self.shortcut.masks[0]
        merged = self.module(tokens, mask)
        real = tokens.flatten(0, 1) if mask is None else tokens[mask]
        return float(merged.float().norm(dim=-1).mean() / real.float().norm(dim=-1).mean())


def _queried(model: nn.Module) -> list[InsertedMerger]:
    """The mergers whose queries can be set."""
    present = mergers(model)
    if not present:
        raise ValueError(f"model ({host_class(model).__name__}) has no merger: patchmerger.insert(model) puts one in")
    for merger in present:
        if not isinstance(merger.module, PatchMerger):
            raise ValueError(f"{merger.name} is a {type(merger.module).__name__}, which has no queries to set")
    return present


def _batches(model: nn.Module, images: Tensor | Iterable[Tensor], batch_size: int) -> list[Tensor]:
    """The images in batches on the model's device, checked."""
    if batch_size < 1:
        raise ValueError(f"batch_size ({batch_size}) must be at least 1")
    like = next(p for p in model.parameters() if p.is_floating_point())
    given = [images] if isinstance(images, Tensor) else list(images)
    for batch in given:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point():
            what = (tuple(batch.shape), batch.dtype) if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"images must be normalised floats (n, channels, height, width), got {what}")
    batches = [part.to(like) for batch in given for part in batch.split(batch_size) if len(part)]
    if sum(map(len, batches)) < 2:
        raise ValueError("images has fewer than 2 images: some hundreds are needed")
    if len(batches) > 1 and len(batches[-1]) < 2:
        batches.pop()
    return batches


def _grid(net: nn.Module, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the tokens; ``None`` where they are no grid."""
    try:
        patches = find_host(net).num_patches
    except UnsupportedModelError:
        patches = None
    known = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if patches == tokens and known is not None and known[0] * known[1] == tokens:
        return int(known[0]), int(known[1])
    side = round(tokens**0.5)
    return (side, side) if side * side == tokens and patches == tokens else None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, grad in needs:
            parameter.requires_grad_(grad)
