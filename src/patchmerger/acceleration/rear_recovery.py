"""Recover the rear half of a merged model on tokens that its frozen front half computed once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from patchmerger.acceleration.distillation_task import KeptTask
from patchmerger.acceleration.kept_tokens import HELD_OUT_SHARE, KeptShape, KeptTokens, images_that_fit, is_complete
from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.acceleration.recovery_data import KeptBatches, KeptData, Views, choose_views, is_varied
from patchmerger.acceleration.recovery_job import RecoveryJob, seconds_per_step, train_phase
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.data.batches import Key
from patchmerger.data.settings import Augmentation
from patchmerger.data.transforms import EvalTransform, normalize
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.modes import eval_mode
from patchmerger.models.classifier import Classifier
from patchmerger.models.finding import weights_fingerprint
from patchmerger.runs.environment import clock
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.run_folder import RunFolder, fingerprint

PASSES = 3
"""Passes over each kept view: more images seen three times do better than fewer seen more often."""


def recover_rear(job: RecoveryJob, share: float) -> dict[str, Any]:
    """Keep tokens, then train the first merger and what follows on them, for a share of the length or budget.

    Raises:
        ValueError: No merger and no ``recovery.frozen_blocks``, a model that cannot run from kept tokens, kept tokens
            of another run or damaged ones, or too little space for them.
    """
    halves = _Halves(job)
    views = {
        "kept": Views(
            job.data.train, EvalTransform(job.image_size, job.preprocessing), job.augmentation, seed=job.seed
        ),
        "watched": Views(job.watched, EvalTransform(job.image_size, job.preprocessing), _SAME, seed=job.seed),
    }
    probe = [(0, index) for index in range(min(job.recovery.batch_size, len(job.data.train)))]
    shape = halves.prepare(views["kept"].__getitems__(probe))
    length = job.length("rear", lambda: _length(job, halves, views["kept"], shape, probe, share))
    chosen = {
        "kept": choose_views(len(job.data.train), length["views"], seed=job.seed),
        "watched": choose_views(len(job.watched), length["watched"], seed=job.seed),
    }
    steps, batch_size = length["steps"], job.recovery.batch_size
    size = length["views"] * shape.bytes / 2**30
    keeping, training = (f", about {length[name]:.0f} s" if length[name] else "" for name in _TIMES)
    job.say(
        f"    rear: keeps the tokens of {length['views']:,} views of {len(job.data.train):,} images "
        f"({size:.2f} GiB{keeping}), then {steps:,} steps of {batch_size} on them{training}"
    )
    folder = job.phase("rear", steps, after=halves.after)
    with folder.exclusive():
        return _keep_and_train(job, halves, folder, views, chosen, shape, steps)


def _keep_and_train(
    job: RecoveryJob,
    halves: _Halves,
    folder: RunFolder,
    views: dict[str, Views],
    chosen: dict[str, list[Key]],
    shape: KeptShape,
    steps: int,
) -> dict[str, Any]:
    """Both, unless a finished run left the result."""
    batch_size, count = job.recovery.batch_size, len(chosen["kept"])
    kept, seconds = {}, 0.0
    for name in () if folder.results is not None else chosen:
        identity = halves.identity(views[name], chosen[name])
        shared = job.shared_cache and job.shared_cache / f"{name}-{fingerprint([identity, shape])[:12]}"
        with _alone(None if shared and is_complete(shared, len(chosen[name])) else shared):
            kept[name] = KeptTokens(shared or folder.path / name, shape, len(chosen[name]), identity)
            seconds += _fill(job, halves, kept[name], views[name], chosen[name], name)
    batches = {
        name: KeptBatches(tokens, views[name].images.targets[[index for _, index in chosen[name]]])
        for name, tokens in kept.items()
    }
    with halves.frozen(job.student):
        if not kept:
            return train_phase(halves.task(job.student, steps, 1), None, folder, job, steps=steps, watched=None)
        per_epoch = count // batch_size
        data = KeptData(
            batches["kept"], batches["watched"], batch_size=batch_size, epochs=math.ceil(steps / per_epoch),
            seed=job.seed,
        )  # fmt: skip
        found = train_phase(
            halves.task(job.student, steps, per_epoch), data, folder, job, steps=steps, watched=data.val_dataloader,
            kept={"views": count, "bytes": count * shape.bytes, "seconds": seconds},
            watched_images=len(chosen["watched"]),
        )  # fmt: skip
    if not job.recovery.keep_cache and job.shared_cache is None:
        for tokens in kept.values():
            tokens.remove()
    return found


_TIMES = ("keep_seconds", "train_seconds")
_SAME = Augmentation("none", flip=False)


@contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Within it, no other process fills that folder."""
    if folder is None:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield


class _Halves:
    """Student and teacher, cut after the same block."""

    def __init__(self, job: RecoveryJob) -> None:
        self.job = job
        present = mergers(job.student)
        self.after = last_frozen_block(job.recovery, present[0].last_whole_block if present else None)
        self.student = Classifier(job.student.to(job.device))
        self.teacher = Classifier(job.teacher.to(job.device))
        self.of_student, self.of_teacher = RearHalf(self.student, self.after), RearHalf(self.teacher, self.after)
        self.shared = False
        self._trained: set[str] = set()

    def prepare(self, batch: tuple[Tensor, Tensor]) -> KeptShape:
        """Try both on some images; refuse a model that cannot run from kept tokens."""
        images = self._normalized(batch[0])
        self.of_student.check(self.student, images)
        with eval_mode(self.student), torch.no_grad():
            taught = self.of_teacher.front(self.teacher, images)
            tokens = self.of_student.front(self.student, images).tokens
        self.shared = torch.equal(tokens, taught.tokens)
        if self.job.recovery.mixup and not self.shared:
            raise ValueError(
                f"recovery.mixup ({self.job.recovery.mixup:g}): the kept tokens are not the teacher's, which would "
                "have to run on them: leave mixup out, or take recovery.scope 'all'"
            )
        self._trained = self.of_student.trained(self.student, tokens[:2].detach())
        return KeptShape(
            tokens.shape[1], tokens.shape[2], taught.scores.shape[1], taught.features.shape[1],
            self.job.recovery.cache_dtype,
        )  # fmt: skip

    def compute(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the student, scores and features of the teacher, for uint8 images (B, 3, S, S)."""
        job, images = self.job, self._normalized(pixels)
        mixed = torch.autocast(job.device.type, torch.bfloat16, enabled=job.precision == "bf16-mixed")
        with eval_mode(self.student), torch.no_grad(), mixed:
            taught = self.of_teacher.front(self.teacher, images)
            tokens = taught.tokens if self.shared else self.of_student.front(self.student, images).tokens
        return tokens, taught.scores, taught.features

    def task(self, student: nn.Module, steps: int, steps_per_epoch: int) -> KeptTask:
        """The training task for ``student``, this one or a copy."""
        job = self.job
        return KeptTask(
            self.of_student,
            self.of_teacher,
            student,
            job.teacher,
            job.recovery,
            **job.task_arguments(steps, steps_per_epoch),
        )

    @contextmanager
    def frozen(self, student: nn.Module) -> Iterator[None]:
        """Within it, only what a training on kept tokens reaches needs gradients."""
        held = [p for name, p in student.named_parameters() if p.requires_grad and name not in self._trained]
        try:
            for parameter in held:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in held:
                parameter.requires_grad_(True)

    def identity(self, views: Views, chosen: Sequence[Key]) -> dict[str, Any]:
        """What kept tokens depend on."""
        job = self.job
        own = job.augmentation
        return {
            "teacher": weights_fingerprint(job.teacher),
            "student": None if self.shared else weights_fingerprint(job.student),
            "after": self.after,
            "data": job.data.fingerprint,
            "pixels": views.images.sample_hash,
            "images": len(views.images),
            "views": len(chosen),
            "augmentation": own if isinstance(own, Augmentation) else type(own).__name__,
            "preprocessing": job.preprocessing,
            "image_size": job.image_size,
            "precision": job.precision,
            "seed": job.seed,
        }

    def _normalized(self, pixels: Tensor) -> Tensor:
        return normalize(pixels, self.job.preprocessing).to(next(self.student.parameters()))


def last_frozen_block(recovery: RecoverySettings, first_merge: int | None) -> int:
    """The last frozen block, counted from 1; 0 where none is.

    Raises:
        ValueError: Neither the settings nor a first merge says so, or the merge would be frozen too.
    """
    wanted = recovery.frozen_blocks
    if wanted is None and first_merge is None:
        raise ValueError(
            "recovery.scope ('rear') freezes what comes before the first merge, and student has no merger: give "
            "recovery.frozen_blocks, or take scope 'all'"
        )
    if wanted is not None and first_merge is not None and wanted > first_merge:
        raise ValueError(
            f"recovery.frozen_blocks ({wanted}) must be at most {first_merge}, the block of the first merge"
        )
    return first_merge if wanted is None else wanted  # type: ignore[return-value]


def _fill(job: RecoveryJob, halves: _Halves, kept: KeptTokens, views: Views, chosen: Sequence[Key], name: str) -> float:
    """Compute what is missing; returns the seconds it took."""
    begin, missing = time.perf_counter(), chosen[kept.done :]
    if not missing:
        return 0.0
    batches = (halves.compute(pixels) for pixels, _ in views.batches(missing, job.recovery.batch_size, job.workers))
    with progress_bar(f"keeping tokens ({name})", len(missing), shown=job.progress) as bar:
        for images in kept.write(batches):
            bar.advance(images)
    return time.perf_counter() - begin


def _length(
    job: RecoveryJob, halves: _Halves, views: Views, shape: KeptShape, probe: list[Key], share: float
) -> dict[str, Any]:
    """How many views are kept, and how many steps are trained on them."""
    recovery, images, batch_size = job.recovery, len(job.data.train), job.recovery.batch_size
    measured = recovery.seconds is not None or job.progress
    keep, step = _seconds(job, halves, views, probe) if measured else (0.0, 0.0)
    folder = job.shared_cache or job.out
    watched, fewer = images_that_fit(shape, len(job.watched), folder, recovery.cache_gib, share=HELD_OUT_SHARE)
    if fewer is not None:
        job.say(f"    held out: {fewer}")
    most = images * (recovery.views or (8 if is_varied(job.augmentation) else 1))
    if recovery.seconds is None:
        steps = max(1, round(share * recovery.steps_for(images)))
        wanted = max(min(images, steps * batch_size), steps * batch_size // PASSES)
    else:
        watched = max(min(watched, batch_size), min(watched, int(0.1 * share * recovery.seconds / (keep + 2 * step))))
        seconds = max(0.5 * share * recovery.seconds, share * recovery.seconds - watched * (keep + 2 * step))
        wanted = int(seconds / (keep + PASSES * step))
    wanted = max(batch_size, min(wanted if recovery.views is None else most, most))
    count, remark = images_that_fit(shape, wanted, folder, recovery.cache_gib, beside=watched)
    if remark is not None:
        job.say(f"    {remark}")
    if count < batch_size or not watched:
        raise ValueError(f"recovery.scope ('rear') has too little space for kept tokens: {remark or fewer}")
    if recovery.seconds is not None:
        steps = max(1, int((seconds - count * keep) / (step * batch_size)))
    return {
        "views": count, "watched": watched, "steps": steps, "keep_seconds": count * keep,
        "train_seconds": steps * batch_size * step, "remark": remark,
    }  # fmt: skip


def _seconds(job: RecoveryJob, halves: _Halves, views: Views, probe: list[Key]) -> tuple[float, float]:
    """Seconds to keep a view, and to train on it once, measured on a batch."""
    now = clock(job.device)
    begin = now()
    pixels, targets = next(views.batches(probe, len(probe), job.workers))
    parts = [part.float() for part in halves.compute(pixels)]
    keep = (now() - begin) / len(probe)
    student = copy.deepcopy(job.student)
    with halves.frozen(student):
        step = seconds_per_step(halves.task(student, 10, 10), [*parts, targets], job) / len(probe)
    return keep, step
