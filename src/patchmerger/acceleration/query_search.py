"""The search for the queries of one merger: directions, their length, and steps on the queries alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from patchmerger.acceleration.query_directions import kmeans_directions, whitened_directions
from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.insertion.inserted import InsertedMerger
from patchmerger.merger import PatchMerger
from patchmerger.models.classifier import Classifier, divergence, feature_error

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Calibrated:
    """How the queries of one merger were set.

    Attributes:
        name: The merger's name in the model.
        method: What was chosen, ``"kmeans-whitened"`` say, with ``", reconstruction"`` where steps followed.
        logit_std: Standard deviation of the scores before any steps; ``None`` for random queries.
        random: Divergence from the plain model with the queries as they were, in nats (see ``classifier.divergence``).
        initial: The same with the chosen directions and standard deviation, before any steps.
        divergence: The same at the end.
        norm_ratio: Length of the merged tokens / length of those that arrive: 1 keeps the scale of the model.
        tried: The divergence of every pair of directions and standard deviation.
    """

    name: str
    method: str
    logit_std: float | None
    random: float
    initial: float
    divergence: float
    norm_ratio: float
    tried: dict[str, float]


class QuerySearch:
    """The search for the queries of one merger."""

    def __init__(
        self,
        student: Classifier,
        merger: InsertedMerger,
        batches: list[Tensor],
        wanted: list[tuple[Tensor, Tensor]],
        multi_label: bool,
        seed: int,
        progress: Tell,
    ) -> None:
        self.name, self.module = merger.name, cast(PatchMerger, merger.module)
        self.student, self.batches = student, batches
        self.rear = RearHalf(student, merger.after)
        self.calls: list[dict[str, Any]] = []  # what the merger is called with beside tokens
        self.tokens: list[Tensor] = []  # those that it merges, (B, N, D)
        self.kept: list[Any] = []  # what the blocks before it give
        with torch.no_grad(), self.module.register_forward_pre_hook(self._seen, with_kwargs=True):
            self.kept = [self.rear.front(student, images).tokens for images in batches]
        self.wanted, self.multi_label, self.seed, self.progress = wanted, multi_label, seed, progress
        self.no_scores = student.head is None
        norm = self.module.norm or nn.Identity()
        with torch.no_grad():
            self.keys = [norm(tokens) for tokens in self.tokens]

    def run(self, method: str, logit_stds: tuple[float, ...], steps: int, lr: float) -> Calibrated:
        """Set the queries."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.module.weight.shape, generator=generator)
        self._set(noise / (abs(self.module.scale) * self.module.dim**0.5))
        at_random, tried = self._gap(), {}
        noise = self.module.weight.detach().clone()
        chosen: tuple[float, str, float | None, Tensor] = (at_random, "random", None, noise)
        found = [] if method == "random" else list(self._directions(method).items())
        for number, (name, directions) in enumerate(found):
            unit = directions / self._logit_std(directions)
            for index, std in enumerate(logit_stds, start=1):
                self._set(std * unit)
                gap = self._gap()
                tried[f"{name}, {std:g}"] = gap
                if gap < chosen[0] or (chosen[2] is None and method != "reconstruction"):
                    chosen = (gap, name, std, self.module.weight.detach().clone())
                done = number * len(logit_stds) + index
                self.progress("trying queries", done / (len(found) * len(logit_stds)))
        initial, name, logit_std, weight = chosen
        self._set(weight)
        end = initial
        if method == "reconstruction":
            end = self._reconstruct(steps, lr, initial)
            name += ", reconstruction"
        return Calibrated(self.name, name, logit_std, at_random, initial, end, self._norm_ratio(), tried)

    def _seen(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens.append(args[0])
        self.calls.append({name: value for name, value in kwargs.items() if name != "return_weights"})

    def _directions(self, method: str) -> dict[str, Tensor]:
        keys, count = torch.cat([k.flatten(0, 1) for k in self._real_keys()]), self.module.num_tokens
        found = {}
        if method == "located":
            found["located"] = torch.randn(count, self.module.dim, generator=torch.Generator().manual_seed(self.seed))
        if method in ("soft", "reconstruction"):
            found["kmeans"] = kmeans_directions(keys, count, seed=self.seed)
            found["kmeans-whitened"] = whitened_directions(keys, count, seed=self.seed)
        return found

    def _real_keys(self) -> Iterator[Tensor]:
        """Normalised tokens, (1, n, D), padding left out."""
        for keys, call in zip(self.keys, self.calls, strict=True):
            mask = call.get("mask")
            yield keys.flatten(0, 1)[None] if mask is None else keys[mask][None]

    def _logit_std(self, directions: Tensor) -> Tensor:
        """Standard deviation of the scores over tokens, all queries together."""
        keys = torch.cat([k.flatten(0, 1) for k in self._real_keys()][:8]).float()
        scores = self.module.scale * keys @ directions.to(keys.device).T
        return scores.std(dim=0).square().mean().sqrt().clamp(min=1e-12).cpu()

    def _set(self, weight: Tensor) -> None:
        with torch.no_grad():
            self.module.weight.copy_(weight.to(self.module.weight))

    @torch.no_grad()
    def _gap(self) -> float:
        gaps = [self._distance(number) * len(batch) for number, batch in enumerate(self.batches)]
        return float(sum(gaps)) / sum(map(len, self.batches))

    def _distance(self, batch: int, *, features_too: bool = False) -> Tensor:
        scores, features = self.rear.run(self.student, self.kept[batch])
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
                order = order or torch.randperm(len(self.batches), generator=generator).tolist()
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
        tokens, mask = self.tokens[0], self.calls[0].get("mask")
        merged = self.module(tokens, **self.calls[0])
        real = tokens.flatten(0, 1) if mask is None else tokens[mask]
        return float(merged.float().norm(dim=-1).mean() / real.float().norm(dim=-1).mean())
