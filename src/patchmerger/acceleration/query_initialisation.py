"""Set the queries of a merger in a trained model from the model's own features, in place of noise; no labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from patchmerger.acceleration.query_search import Calibrated, QuerySearch
from patchmerger.acceleration.settings import QueryInit
from patchmerger.data.batches import normalized_batches
from patchmerger.data.loading import DataLike, load_images
from patchmerger.hosts import find_host
from patchmerger.hosts.example_inputs import example_input, square_input
from patchmerger.insertion.inserted import InsertedMerger, mergers
from patchmerger.insertion.inserting import remove
from patchmerger.mechanism.modes import eval_mode
from patchmerger.mechanism.subclassing import host_class
from patchmerger.merger import PatchMerger
from patchmerger.models.classifier import Classifier
from patchmerger.models.finding import find_model
from patchmerger.runs.checks import check_count

LOGIT_STDS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
"""Standard deviations of the scores that are tried; queries drawn at random have 1."""

_DRAWN = 512
SOFT = 1.0
"""Standard deviation of the scores in ``method="soft"``: that of queries drawn at random."""

NEAR_ZERO = 0.02
"""The same in ``method="located"``: tokens weigh alike, but for their places."""


def recommended_query_init(*, recovers: bool, grid: bool = True) -> QueryInit:
    """What ``"best"`` is, before a training and without: measured to be the best (docs/accelerate.md).

    Queries that choose sharply change the outputs least as long as nothing is trained. But they drop most tokens, and a
    softmax that is nearly one-hot hardly learns: a training ends higher from queries that are soft, and highest from
    those that begin as averages over regions of the image, where its patches have a known grid.
    """
    if not recovers:
        return "reconstruction"
    return "located" if grid else "soft"


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` did: the method that was taken, on so many images, and what became of each merger."""

    method: QueryInit
    images: int
    mergers: tuple[Calibrated, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def calibrate(
    model: nn.Module,
    images: Tensor | Iterable[Tensor] | DataLike,
    *,
    method: QueryInit = "best",
    plain: nn.Module | None = None,
    logit_stds: Iterable[float] = LOGIT_STDS,
    steps: int = 300,
    lr: float = 0.1,
    batch_size: int = 64,
    multi_label: bool = False,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Calibration:
    """Set the queries of the mergers in a trained model from its own features, in place.

    Nothing else in the model changes, and no labels are needed: of the methods below and of the standard deviations
    those are taken with which the scores of the merged model differ least from those of the plain one, on these images.

    - ``"soft"``: centres of clusters of the normalised tokens that arrive at the merger, less their mean, in the
      tokens' own coordinates or whitened, whichever differs less, with a standard deviation of :data:`SOFT`: for models
      that are trained afterwards;
    - ``"reconstruction"``: the best of these over ``logit_stds``, then ``steps`` of Adam on the queries alone that
      bring scores and pooled features closer to the plain model's: for models that are not trained;
    - ``"located"``: W near zero, for mergers with ``prior="grid"``, which begin as averages over regions of the image:
      for models that are trained afterwards;
    - ``"random"``: drawn anew, the reference;
    - ``"best"``: ``"reconstruction"``, the best where no training follows (see :func:`recommended_query_init`).

    Args:
        model: A model with at least one PatchMerger; several are set first to last.
        images: Normalised images as the model takes them, (n, 3, S, S), or a list or generator of batches of them: some
            hundreds. Or what ``load_images`` takes: 512 of its training images are drawn.
        method: See above.
        plain: The model to be matched; by default ``model`` without its mergers.
        logit_stds: Standard deviations of the scores that are tried.
        steps: Steps of reconstruction.
        lr: Their learning rate, relative to the size of the queries.
        batch_size: Images that run at once.
        multi_label: Whether the scores are a yes or no for each class.
        seed: Of everything random.
        progress: Called with what is done and the share of it that is.

    Returns:
        What was chosen, and how far from the plain model each choice was.

    Raises:
        ValueError: No merger, another reducer than PatchMerger, too few or wrong images, an unknown ``method``, or
            ``plain`` is ``model``.
    """
    if method not in get_args(QueryInit):
        raise ValueError(f"method ({method!r}) must be one of {', '.join(map(repr, get_args(QueryInit)))}")
    tried = tuple(logit_stds)
    if not tried or min(tried) <= 0:
        raise ValueError(f"logit_stds ({list(tried)}) must be at least one number above 0")
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps ({steps}) must be at least 1 and lr ({lr}) above 0")
    present = _queried(model)
    if not isinstance(images, Tensor | Iterator | list | tuple):
        images = _drawn(model, images, seed)
    batches = _batches(model, images, batch_size)
    _check_size(model, batches)
    if method == "located" and any(cast(PatchMerger, merger.module).prior is None for merger in present):
        raise ValueError("method ('located') needs mergers with places: insert(model, prior='grid')")
    if plain is model:
        raise ValueError(
            "plain is the merged model itself, as insert changes a model in place: leave it out, or give a copy "
            "that was made before"
        )
    plain = remove(copy.deepcopy(model)) if plain is None else plain
    method = recommended_query_init(recovers=False) if method == "best" else method
    tried = {"soft": (SOFT,), "located": (NEAR_ZERO,)}.get(method, tried)
    results = []
    with _frozen(model):
        student, teacher = Classifier(model), Classifier(plain.eval())
        with torch.no_grad():
            wanted = [teacher.with_features(batch) for batch in batches]
        for merger in present:
            search = QuerySearch(student, merger, batches, wanted, multi_label, seed, progress or (lambda *_: None))
            results.append(search.run(method, tried, steps, lr))
    return Calibration(method, sum(map(len, batches)), tuple(results))


def _queried(model: nn.Module) -> list[InsertedMerger]:
    """The mergers whose queries can be set."""
    present = mergers(model)
    if not present:
        raise ValueError(f"model ({host_class(model).__name__}) has no merger: patchmerger.insert(model) puts one in")
    for merger in present:
        if not isinstance(merger.module, PatchMerger):
            raise ValueError(f"{merger.name} is a {type(merger.module).__name__}, which has no queries to set")
    return present


def _drawn(model: nn.Module, data: DataLike, seed: int) -> Tensor:
    """Some training images, as the model takes them."""
    found = find_model(model)
    if found.preprocessing is None:
        raise ValueError(
            f"model ({found.name}) does not say how its images are normalised: give images as normalised tensors"
        )
    train = load_images(data, seed=seed, labels_needed=False).train
    return torch.cat(list(normalized_batches(train.drawn(_DRAWN, seed), found.preprocessing, square_input(model))))


def _batches(model: nn.Module, images: Tensor | Iterable[Tensor], batch_size: int) -> list[Tensor]:
    """The images in batches on the model's device, checked."""
    check_count("batch_size", batch_size)
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


def _check_size(model: nn.Module, batches: list[Tensor]) -> None:
    channels, height, width = example_input(model).images.shape[-3:]
    fixed_size = find_host(model).num_patches is not None
    for batch in batches:
        if batch.shape[1] != channels or (fixed_size and batch.shape[2:] != (height, width)):
            raise ValueError(
                f"images {tuple(batch.shape)} do not fit {host_class(model).__name__}: it takes {channels} channels, "
                f"{height} × {width} pixels"
            )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The model in eval mode and without gradients; afterwards as it was."""
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with eval_mode(model):
            model.requires_grad_(False)
            yield
    finally:
        for parameter, grad in needs:
            parameter.requires_grad_(grad)
