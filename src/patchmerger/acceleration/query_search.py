"""The search for the queries of one merger: directions, their length, and steps on the queries alone.

Scores are ``w · k`` for normalised tokens k, so a query is a direction, and its length is how sharply it chooses.
Tokens have a large mean in common, which says nothing of a token: directions are differences from it. As normalised
tokens have about the same length, ``softmax(s c · k)`` over the tokens is ``softmax(-s ‖c - k‖² / 2)``: soft assignment
to the centre c, with variance 1/s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor, nn

from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.insertion.inserted import InsertedMerger
from patchmerger.merger import PatchMerger
from patchmerger.models.classifier import Classifier, divergence, feature_error

Tell = Callable[[str, float], None]

_TOKENS = 50_000  # more change no centre
_SHRINKAGE = 0.01


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
            generator = torch.Generator().manual_seed(self.seed)
            return {"located": torch.randn(self.module.weight.shape, generator=generator)}
        if method in ("soft", "reconstruction"):
            found["kmeans"] = kmeans_directions(keys, count, seed=self.seed)
            found["kmeans-whitened"] = whitened_directions(keys, count, seed=self.seed)
        return {name: each.repeat_interleave(self.module.num_heads, dim=0) for name, each in found.items()}

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


def kmeans_directions(keys: Tensor, num_tokens: int, *, seed: int = 0) -> Tensor:
    """Centres (M, D) of clusters of normalised tokens (B, N, D), less the mean of all."""
    tokens = _sample(keys, seed)
    return _centres(tokens, num_tokens, seed) - tokens.mean(dim=0)


def whitened_directions(keys: Tensor, num_tokens: int, *, seed: int = 0) -> Tensor:
    """Such centres in which every direction varies alike: ``w = Σ⁻¹ (c − mean)``, in the coordinates of the tokens.

    So that a few directions of large variance do not decide alone which tokens are alike.
    """
    tokens = _sample(keys, seed)
    whiten = _whitening(tokens)  # (D, D)
    return _centres((tokens - tokens.mean(dim=0)) @ whiten, num_tokens, seed) @ whiten.T


def _sample(keys: Tensor, seed: int) -> Tensor:
    """At most so many tokens, (n, D), float32 on the CPU."""
    tokens = keys.flatten(0, -2)
    if len(tokens) > _TOKENS:
        chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:_TOKENS]
        tokens = tokens[chosen.to(tokens.device)]
    return tokens.detach().float().cpu()


def _centres(tokens: Tensor, num_tokens: int, seed: int) -> Tensor:
    """Of the clusters, (M, D); where there are fewer different tokens than clusters, some stand twice."""
    clusters = min(num_tokens, len(np.unique(tokens[:4096].numpy(), axis=0)))
    means = MiniBatchKMeans(clusters, n_init=3, batch_size=4096, random_state=seed).fit(tokens.numpy())
    centres = torch.from_numpy(means.cluster_centers_).float()
    return centres[torch.arange(num_tokens) % clusters]


def _whitening(tokens: Tensor) -> Tensor:
    """L (D, D) with L Lᵀ = Σ⁻¹, of a covariance Σ that is shrunk a little towards a multiple of one."""
    covariance = torch.cov(tokens.double().T)
    shrunk = covariance + _SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance))
    whitening: Tensor = torch.linalg.cholesky(torch.linalg.inv(shrunk)).float()
    return whitening
