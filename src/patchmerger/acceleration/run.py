"""One acceleration, step by step: place, initialise, recover, evaluate, keep."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from patchmerger.acceleration.agreement import Evaluation, HeldOutScores, chance_warning, scored_within
from patchmerger.acceleration.distillation import distill
from patchmerger.acceleration.placement import (
    ChosenPlacement,
    candidate_placements,
    choose_placement,
    slower_but_safer,
)
from patchmerger.acceleration.placement_trials import PlacementTrials, best_placement, least_changed
from patchmerger.acceleration.query_initialisation import calibrate, recommended_query_init
from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.acceleration.rear_recovery import last_frozen_block
from patchmerger.acceleration.recovery_job import device_of
from patchmerger.acceleration.settings import (
    PlacementSettings,
    QueryInit,
    QueryInitSettings,
    RecoverySettings,
)
from patchmerger.costs.model_cost import cost
from patchmerger.data import Augmentation, ImageSet, ImageSplits
from patchmerger.data.splits import SWAPPED
from patchmerger.hosts import find_host
from patchmerger.insertion.inserted import mergers
from patchmerger.models.classifier import Classifier, FoundClassifier
from patchmerger.reducers.names import METHODS
from patchmerger.runs.environment import default_precision, environment
from patchmerger.runs.files import made_once, read_json
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.random_state import seeded
from patchmerger.runs.run_folder import RunFolder
from patchmerger.runs.tensors import read_tensors, write_tensors
from patchmerger.speed.measurement import measure as measure_speed
from patchmerger.speed.settings import Precision as SpeedPrecision
from patchmerger.speed.settings import TimingSettings
from patchmerger.training.fitting import MODEL_FOLDER

_CANDIDATES = 4  # placements that are compared if nothing is given
_COMPARED = 128  # training images that they are compared on, untrained


class AccelerationRun:
    """One acceleration, step by step: each step leaves a file behind in the run's folder, and is not done again.

    The teacher is the plain model, which is not changed; ``labels`` says whether the targets of the images are labels.
    """

    def __init__(
        self,
        folder: RunFolder,
        teacher: FoundClassifier,
        images: ImageSplits,
        labels: bool,
        recovery: RecoverySettings,
        seed: int,
        progress: bool,
        workers: int | None,
    ) -> None:
        self.folder, self.teacher, self.images, self.labels = folder, teacher, images, labels
        self.recovery, self.seed, self.progress, self.workers = recovery, seed, progress, workers
        self.started = time.monotonic()
        self.device = device_of(recovery)
        self.precision = recovery.precision or default_precision(self.device)
        self.speed_precision: SpeedPrecision = "float32" if self.precision == "32-true" else "bf16"

    def choose_placement(
        self, settings: PlacementSettings, query_init: QueryInit, augmentation: Augmentation
    ) -> ChosenPlacement:
        """1. Where to merge; the folder is made after it, as it is the last step that refuses bad input."""
        path = self.folder.path / "placement.json"
        if path.exists():
            chosen = ChosenPlacement(**read_json(path))
        elif settings.compare == "recovered":
            chosen = self._recover_placements(settings, augmentation)
        elif settings.after is None and not settings.measure:
            chosen = self._compare_placements(settings, query_init)
        else:
            chosen = choose_placement(
                self.teacher.model,
                settings,
                batch_size=min(16, self.recovery.batch_size),
                precision=self.speed_precision,
            )
        measured = "" if chosen.measured is None else f", {chosen.measured:.2f}× measured"
        self._say(f"1/5 placement: {chosen.in_words}: {chosen.predicted:.2f}× by FLOPs{measured}")
        if not path.exists() and self.recovery.scope != "all" and self.recovery.epochs != 0:
            self._check_rear(chosen)
        self.folder.begin()
        if self._kept("images", lambda: {"content": self.images.content})["content"] != self.images.content:
            raise ValueError(SWAPPED)
        return ChosenPlacement(**self._kept("placement", chosen.as_dict))

    def _compare_placements(self, settings: PlacementSettings, query_init: QueryInit) -> ChosenPlacement:
        """The latest of the candidates that differ about as little as any from the plain model, untrained."""
        places = candidate_placements(self.teacher.model, settings, settings.candidates or _CANDIDATES)
        if len(places) == 1:
            return places[0]
        if drawn := self._drawn(places[0], query_init):
            if settings.candidates is None:
                return places[0]
            raise ValueError(
                f"candidates ({settings.candidates}) cannot be compared untrained, as {drawn} draws what it begins "
                "with: compare them recovered (--compare recovered), or take the latest (--candidates 1)"
            )
        batch = self.teacher.prepared(self.images.train, _COMPARED, seed=self.seed)
        chosen = least_changed(
            self.teacher, places, batch, query_init="located", multi_label=self.images.multi_label, device=self.device
        )
        for place, found in zip(places, chosen.compared, strict=True):
            self._say(f"    {place.in_words}: {found['divergence']:.2f} nats from the plain model, untrained")
        return chosen

    def _drawn(self, place: ChosenPlacement, query_init: QueryInit) -> str:
        """What draws the merger's first weights at random, so that an untrained model says nothing; else nothing."""
        if place.reducer == "patchmerger":
            method = self._query_init(query_init)
            return "" if method == "located" else f"query_init ({method!r})"
        return f"reducer ({place.reducer!r})" if METHODS[place.reducer].learned else ""

    def _query_init(self, method: QueryInit) -> QueryInit:
        """The method that ``"best"`` is for this model, or the given one."""
        if method != "best":
            return method
        grid = find_host(self.teacher.model).grid is not None
        return recommended_query_init(recovers=self.recovery.epochs != 0, grid=grid)

    def _recover_placements(self, settings: PlacementSettings, augmentation: Augmentation) -> ChosenPlacement:
        """Recover the candidates shortly, and take the one that differs least from the plain model."""
        places = candidate_placements(self.teacher.model, settings, settings.candidates or _CANDIDATES)
        trials = PlacementTrials(
            self.teacher, self.images, self.recovery, self.labels, augmentation, self.workers, self.seed
        )
        found = []
        for place in places:
            with tempfile.TemporaryDirectory() as passing:
                found.append(trials.try_placement(place, Path(passing)))
            self._say(
                f"    {place.in_words}: agrees with the plain model on "
                f"{100 * found[-1]['agreement']:.1f}% of {found[-1]['images']:,} held-out training images"
            )
        return best_placement(places, found)

    def _check_rear(self, chosen: ChosenPlacement) -> None:
        """Refuse now what could not be recovered from kept tokens later."""
        classifier = Classifier(chosen.merged(self.teacher.model, "random"))
        images = self.teacher.prepared(self.images.train, 2, seed=self.seed)
        rear = RearHalf(classifier, last_frozen_block(self.recovery, chosen.after))
        rear.check(classifier, images.to(next(classifier.parameters())))

    def evaluate_teacher(self, placement: ChosenPlacement, source: str) -> None:
        """The plain model on the held-out images; with a budget, on as many as it scores in a sixth of it."""
        test = self.images.test
        count = self._kept("evaluated", lambda: {"images": self._affordable(test)})["images"]
        if count < len(test):
            self._say(f"    evaluates on {count:,} of {len(test):,} held-out images, for which there is time")
            test = test.drawn(count, self.seed)
        held_out = HeldOutScores(
            self.teacher, test, placement.after, self.folder.path / "evaluation",
            cache_gib=self.recovery.cache_gib, device=self.device, batch_size=2 * self.recovery.batch_size,
            workers=self.workers, progress=self.progress,
        )  # fmt: skip
        self.evaluation = Evaluation(
            held_out, self.folder.path, labels=self.labels, multi_label=self.images.multi_label
        )
        accuracy = self.evaluation.found["plain"]["accuracy"]
        if accuracy is not None:
            self._say(f"    the plain model: {self.evaluation.metric} {100 * accuracy:.2f}%")
        if self.evaluation.at_chance:
            warnings.warn(chance_warning(self.teacher, accuracy, source), stacklevel=3)

    def _affordable(self, test: ImageSet) -> int:
        """How many held-out images to evaluate on."""
        if self.recovery.seconds is None:
            return len(test)
        return scored_within(
            self.recovery.seconds / 6, Classifier(copy.deepcopy(self.teacher.model).to(self.device)), test,
            self.teacher, batch_size=self.recovery.batch_size, workers=self.workers,
        )  # fmt: skip

    def initialise_queries(self, placement: ChosenPlacement, query_init: QueryInitSettings) -> nn.Module:
        """2. The merged model, with queries from its own features."""
        if placement.reducer != "patchmerger":
            return self._without_queries(placement)
        method = self._query_init(query_init.method)
        student = placement.merged(self.teacher.model, method)
        (merger,) = mergers(student)
        path = self.folder.path / "queries.safetensors"
        if path.exists():
            merger.module.load_state_dict(read_tensors(path))
        else:
            count = min(query_init.images, 64) if method == "located" else query_init.images  # nothing is chosen
            batch = self.teacher.prepared(self.images.train, count, seed=self.seed)
            with progress_bar("2/5 queries", 1.0, shown=self.progress) as bar:
                student.to(self.device)
                found = calibrate(
                    student, batch, method=method, plain=copy.deepcopy(self.teacher.model).to(self.device),
                    seed=self.seed, batch_size=min(64, self.recovery.batch_size), multi_label=self.images.multi_label,
                    progress=lambda what, share: bar.describe(f"2/5 queries: {what}", share),
                )  # fmt: skip
            student.cpu()
            self._kept("query_init", found.as_dict)
            write_tensors(path, merger.module.state_dict())
        self._say(f"2/5 queries: {self.evaluation.add('initialised', student, same_front=True)}")
        return student

    def _without_queries(self, placement: ChosenPlacement) -> nn.Module:
        """The model with another method in the merger's place, its parameters drawn from the seed."""
        with seeded(self.seed):
            student = placement.merged(self.teacher.model, "random")
        self._kept("query_init", lambda: {"method": None, "reducer": placement.reducer})
        self._say(f"2/5 {placement.reducer}: {self.evaluation.add('initialised', student, same_front=True)}")
        return student

    def recover(self, student: nn.Module, augmentation: Augmentation) -> None:
        """3. A short training, guided by the plain model."""
        if self.recovery.epochs == 0:
            self.recovered: dict[str, Any] = {"steps": 0, "epochs": 0.0, "seconds": 0.0, "phases": {}}
        else:
            length = f"{1.0 if self.recovery.epochs is None else self.recovery.epochs:g} epochs"
            if self.recovery.steps is not None:
                length = f"{self.recovery.steps} steps"
            self._say(f"3/5 recovery: {self.recovery.scope}, {self.recovery.budget or length}")
            self.recovered = distill(
                student, self.teacher.model, self.images, preprocessing=self.teacher.preprocessing,
                recovery=self.recovery, labels=self.labels, augmentation=augmentation, workers=self.workers,
                seed=self.seed, out=self.folder.path / "recovery", progress=self.progress,
            )  # fmt: skip
        student.cpu()
        frozen = set(self.recovered["phases"]) <= {"rear"} and self.recovery.frozen_blocks in (
            None,
            self.evaluation.held_out.after,
        )
        self._say(f"    recovered: {self.evaluation.add('recovered', student, same_front=frozen)}")

    def finish(
        self, student: nn.Module, placement: ChosenPlacement, drop: float, *, rounds: int, command: str | None
    ) -> dict[str, Any]:
        """4. and 5. The speed, what was lost, and the model in its folder."""
        self._say("4/5 evaluation: measuring the speed")
        speed = measure_speed(
            {"plain": self.teacher.model, "accelerated": student},
            TimingSettings(
                batch_size=min(32, self.recovery.batch_size), precision=self.speed_precision, rounds=rounds,
                device=str(self.device),
            ),
        )  # fmt: skip
        names = self.teacher.class_names or (self.images.class_names if self.labels else None)
        self.teacher.save(
            student, self.folder.path / MODEL_FOLDER, class_names=names or None,
            multi_label=self.images.multi_label, overwrite=True,
        )  # fmt: skip
        counted = cost(student)
        results: dict[str, Any] = {
            "command": command,
            "settings": {"model": self.teacher.name, **self.folder.settings},
            "data": self.images.description,
            "metric": self.evaluation.metric,
            "placement": placement.as_dict(),
            "block_tokens": list(counted.block_tokens),
            "tokens_out": counted.tokens_out,
            "query_init": read_json(self.folder.path / "query_init.json"),
            "recovery": self.recovered,
            "evaluation": self.evaluation.found,
            "speedup": {"predicted": placement.predicted, "measured": speed["accelerated"].speedup},
            "speed": speed.as_dict(),
            "max_drop": drop if self.labels else None,
            "met": None,
            "advice": [],
            "seconds": time.monotonic() - self.started,
            "environment": environment(self.device),
            "folder": str(self.folder.path),
        }
        if self.labels:
            found = self.evaluation.found
            lost = 100 * (found["plain"]["accuracy"] - found["recovered"]["accuracy"])
            results["met"] = lost <= drop
            if not results["met"]:
                longer = self.recovery.three_times_as_long(self.recovered["epochs"])
                results["advice"] = [f"more training ({longer})", *slower_but_safer(self.teacher.model, placement)]
        self.evaluation.held_out.remove()
        self._say(f"5/5 keep: {self.folder.path / MODEL_FOLDER}")
        return self.folder.finish(results)

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step found, made once."""
        found: dict[str, Any] = made_once(self.folder.path / f"{name}.json", make)
        return found

    def _say(self, text: str) -> None:
        if self.progress:
            print(text, file=sys.stderr, flush=True)
