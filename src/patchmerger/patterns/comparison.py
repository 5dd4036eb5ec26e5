"""Compare models by how they reduce tokens, and relate it to their accuracy: what ``patchmerger patterns`` computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchmerger.data import DataSettings, ImageSet, ImageSplits, Preprocessing, load_images
from patchmerger.data.loading import DataLike, name_of, settings_of
from patchmerger.data.seen_images import warn_of_seen
from patchmerger.hosts import find_host
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import insert
from patchmerger.models.classifier import FoundClassifier, find_classifier
from patchmerger.models.finding import FoundModel
from patchmerger.patterns.ranks import correlations, same_methods
from patchmerger.patterns.reading import ModelPatterns, read_patterns
from patchmerger.patterns.settings import PatternSettings
from patchmerger.patterns.similarity import (
    chance_overlap,
    kept_overlap,
    linear_cka,
    mutual_information,
    procrustes_similarity,
)
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.files import check_out, write_json
from patchmerger.runs.serialisation import to_json


@dataclass(frozen=True)
class _Compared:
    """A model that is compared, and where it is a copy with a method put in, of which plain model."""

    model: FoundClassifier
    plain: str | None = None
    reducer: str | None = None
    keep_rate: float | None = None


def compare_patterns(
    models: Sequence[str | Path],
    data: DataLike = DataSettings(),
    settings: PatternSettings = PatternSettings(),
    *,
    batch_size: int = 128,
    preprocessing: Preprocessing | None = None,
    device: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: str | None = None,
) -> dict[str, Any]:
    """Compare how models reduce the tokens of the same images, and what it does to features and accuracy.

    For each pair of models, as Haurum et al. do it:

    - ``iou``: intersection over union of the patches that both keep, mean over images and mergers, with what sets
      drawn at random would have;
    - ``nmi``: normalised mutual information of the groups that both merge, mean over images and mergers;
    - ``cka`` and ``procrustes``: how alike their pooled features are.

    Then the rank correlations (Kendall, Spearman) of each with the drop in accuracy: between one model and all others,
    and over all pairs; of copies of several plain models, within each. For every two plain models it also says whether
    a method does the same in both, and whether the methods lose in the same order. Mergers are compared first with
    first, second with second, where two models have equally many, else last with last; on other grids of patches not at
    all.

    Args:
        models: As in :func:`~patchmerger.models.find_model`; the first is the one to hold the others against, such as
            the plain model. Of several plain ones each is held against its own copies.
        data: The images, with one label each, as in :func:`patchmerger.data.load_images`.
        settings: How many images, and which methods are put into copies of each model that has no merger.
        batch_size: Images in a batch.
        preprocessing: How images are prepared, in place of what is known of each model.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        out: JSON file to write the result to.
        overwrite: Replace that file if it exists.
        progress: Show a progress bar for each model, on a terminal.
        command: The command line that asked for it, kept in the result.

    Returns:
        ``models``, ``pairs``, ``correlations`` and, for every two plain models, ``same_methods``; and what they were
        computed on.

    Raises:
        ValueError: Fewer than two models, several labels an image, other classes than the models have, or a method
            that a plain model cannot take; before any model runs.
        FileExistsError: The file exists and ``overwrite`` is false.

    Source: Haurum, Escalera, Taylor and Moeslund, *Which Tokens to Use?*, arXiv 2308.04657, sections 5 and 6.
    """
    check_out(out, overwrite=overwrite)
    place = find_device(device)
    said = settings_of(data)
    found = [find_classifier(model, preprocessing=preprocessing, crop_pct=said.crop_pct) for model in models]
    if not found or len(found) + len(settings.reducers) < 2:
        raise ValueError(f"models ({', '.join(map(str, models))}): at least two are compared; or give reducers")
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise ValueError(f"models ({', '.join(names)}) names one twice")
    splits = load_images(data, seed=settings.seed)
    images = _drawn(splits, settings)
    for each in found:
        if each.class_names is not None and tuple(each.class_names) != splits.class_names:
            raise ValueError(
                f"model ({each.name}) has other classes than {splits.description}: {len(each.class_names)} against "
                f"{len(splits.class_names)}, or other names"
            )
    for each in found:
        warn_of_seen(each.name, name_of(data), splits, seed=settings.seed, among=(settings.split,))
    for _ in _with_reducers(found, settings):
        pass  # refused before any model runs
    compared, read = [], []
    for one in chain(map(_Compared, found), _with_reducers(found, settings)):
        net = one.model.model.to(place)
        patterns = read_patterns(
            one.model.name, net, images, one.model.preprocessing, batch_size=batch_size, workers=said.workers,
            progress=progress,
        )  # fmt: skip
        read.append(patterns)
        compared.append({"plain": one.plain, "reducer": one.reducer, "keep_rate": one.keep_rate})
        net.cpu()
    accuracies = [float((each.predictions == images.targets).double().mean()) for each in read]
    pairs = [_pair(read[i], read[j], accuracies[i], accuracies[j]) for i, j in combinations(range(len(read)), 2)]
    described = [
        {**_described(patterns, accuracy), **how}
        for patterns, accuracy, how in zip(read, accuracies, compared, strict=True)
    ]
    result = {
        "study": "patterns",
        "command": command,
        "settings": to_json(asdict(settings)),
        "data": splits.description,
        "images": len(images),
        "models": described,
        "pairs": pairs,
        "correlations": correlations(described, pairs),
        "same_methods": same_methods(described, pairs),
        "environment": environment(place),
    }
    if out is not None:
        write_json(out, result, new=not overwrite)
    return result


def _drawn(splits: ImageSplits, settings: PatternSettings) -> ImageSet:
    """Some images of the split, in its order."""
    if splits.multi_label:
        raise ValueError(
            f"{splits.description} has several labels an image; patterns are compared with accuracy, of one"
        )
    images = splits.test if settings.split == "test" else splits.validation
    if images is None:
        raise ValueError(f"split ('validation'): {splits.description} has no validation images")
    generator = torch.Generator().manual_seed(settings.seed)
    return images.subset(torch.randperm(len(images), generator=generator)[: settings.images].sort().values.tolist())


def _with_reducers(found: Sequence[FoundClassifier], settings: PatternSettings) -> Iterator[_Compared]:
    """Copies of each model that has no merger, with each method and keep rate."""
    if not settings.reducers:
        return
    plain = [each for each in found if not mergers(each.model)]
    if not plain:
        raise ValueError(f"models ({', '.join(e.name for e in found)}) have mergers; reducers are put into plain ones")
    for each in plain:
        depth = len(find_host(each.model).blocks)
        after = settings.after or tuple(sorted({max(1, depth * quarters // 4) for quarters in (1, 2, 3)}))
        for reducer in settings.reducers:
            for rate in settings.keep_rates:
                try:
                    model = insert(copy.deepcopy(each.model), keep_rate=rate, after=after, reducer=reducer)
                except ValueError as error:
                    raise ValueError(f"{each.name} cannot be given {reducer} at keep rate {rate:g}: {error}") from error
                name = f"{reducer} {rate:g}" if len(plain) == 1 else f"{each.name}: {reducer} {rate:g}"
                copied = find_classifier(FoundModel(name, model, each.preprocessing, each.class_names))
                yield _Compared(copied, each.name, reducer, rate)


def _described(read: ModelPatterns, accuracy: float) -> dict[str, Any]:
    stages = [
        {
            "after": stage.after,
            "num_tokens": stage.num_tokens,
            "method": stage.method,
            "keeps": stage.kept is not None,
            "merges": stage.group is not None,
            "usage": [[round(value, 4) for value in row] for row in stage.usage.tolist()],
        }
        for stage in read.stages
    ]
    return {"name": read.name, "accuracy": accuracy, "flops": read.flops, "stages": stages}


def _pair(a: ModelPatterns, b: ModelPatterns, accuracy: float, other: float) -> dict[str, Any]:
    """All measures of two models."""
    stages = list(zip(a.stages, b.stages, strict=True)) if len(a.stages) == len(b.stages) else []
    if not stages and a.stages and b.stages:
        stages = [(a.stages[-1], b.stages[-1])]
    overlaps = [_mean(kept_overlap, x.kept, y.kept) for x, y in stages if x.grid == y.grid]
    chances = [_mean(chance_overlap, x.kept, y.kept) for x, y in stages if x.grid == y.grid]
    shared = [_mean(mutual_information, x.group, y.group) for x, y in stages if x.grid == y.grid]
    return {
        "models": [a.name, b.name],
        "accuracy_difference": accuracy - other,
        "agreement": float((a.predictions == b.predictions).double().mean()),
        "cka": linear_cka(a.features, b.features),
        "procrustes": procrustes_similarity(a.features, b.features),
        "iou": _mean_of(overlaps),
        "iou_by_chance": _mean_of(chances),
        "iou_by_merger": overlaps,
        "nmi": _mean_of(shared),
        "nmi_by_merger": shared,
    }


def _mean(measure: Callable[[Tensor, Tensor], Tensor], a: Tensor | None, b: Tensor | None) -> float | None:
    return None if a is None or b is None else float(measure(a, b).mean())


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
