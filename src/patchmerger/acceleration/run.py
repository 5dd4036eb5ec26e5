"""The steps of an acceleration: each leaves a file behind in the run's folder, and is not done again."""

from __future__ import annotations

import copy
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchmerger.acceleration.calibration import Start, calibrate
from patchmerger.acceleration.classifier import Classifier
from patchmerger.acceleration.distillation import default_precision, distill, steps_of
from patchmerger.acceleration.placement import Place, slower_but_safer
from patchmerger.acceleration.proof import at_chance, chance_warning, prove, scores_of, some_of
from patchmerger.acceleration.settings import RecoverySettings
from patchmerger.acceleration.teacher import Teacher
from patchmerger.data import Augmentation, EvalTransform, ImageSet, ImageSplits, normalize
from patchmerger.inserted import mergers
from patchmerger.insertion import insert
from patchmerger.reports.acceleration import draw_acceleration
from patchmerger.runs.environment import environment, find_device
from patchmerger.runs.files import write_json
from patchmerger.runs.run_folder import RunFolder
from patchmerger.speed.benchmark import measure as measure_speed
from patchmerger.speed.timed_steps import Precision as Speed
from patchmerger.training.fitting import MODEL_FOLDER, square_input

PICTURE_FILE = "acceleration.png"


class AccelerationRun:
    """One acceleration, step by step.

    Args:
        folder: Where its files are.
        teacher: The plain model, which is not changed.
        images: The images.
        labels: Whether their targets are labels.
        recovery: How accuracy is won back.
        seed: Of everything random.
        progress: Whether to say what is done.
        workers: Processes that load images.
    """

    def __init__(
        self,
        folder: RunFolder,
        teacher: Teacher,
        images: ImageSplits,
        labels: bool,
        recovery: RecoverySettings,
        seed: int,
        progress: bool,
        workers: int | None,
    ) -> None:
        self.folder, self.teacher, self.images, self.labels = folder, teacher, images, labels
        self.recovery, self.seed, self.progress, self.workers = recovery, seed, progress, workers
        self.targets = images.test.targets if labels else None
        self.device = find_device("cpu" if recovery.accelerator == "cpu" else None)
        self.image_size = square_input(teacher.net)
        self.precision = recovery.precision or default_precision(recovery.accelerator)
        self.speed_precision: Speed = "float32" if self.precision == "32-true" else "bf16"
        self.proofs: dict[str, dict[str, Any]] = {}
        self.metric = "mAP" if labels and images.multi_label else "accuracy"

    def say(self, text: str) -> None:
        """A line of progress."""
        if self.progress:
            print(text, file=sys.stderr, flush=True)

    def keep(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a step found, made once."""
        path = self.folder.path / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def place(self, choose: Callable[[], Place]) -> Place:
        """1. Where to merge."""
        path = self.folder.path / "place.json"
        place = Place(**json.loads(path.read_text())) if path.exists() else choose()
        measured = "" if place.measured is None else f", {place.measured:.2f}× measured"
        self.say(
            f"1/5 place: {place.num_tokens} tokens after block {place.after}: {place.predicted:.2f}× by FLOPs{measured}"
        )
        return place

    def judge_teacher(self, source: str) -> None:
        """The plain model on the held-out images."""
        self.proofs["plain"] = self._judged("plain", lambda: self.teacher.net)
        if self.targets is None:
            return
        accuracy = self.proofs["plain"]["accuracy"]
        self.say(f"    the plain model: {self.metric} {100 * accuracy:.2f}%")
        if at_chance(self._scores("plain"), self.targets):
            warnings.warn(chance_warning(self.teacher, accuracy, source), stacklevel=3)

    def start(self, place: Place, start: Start, count: int) -> nn.Module:
        """2. The merger, with queries from the model's own features."""
        student = insert(copy.deepcopy(self.teacher.net), place.num_tokens, place.after, positions=place.positions)
        (merger,) = mergers(student)
        path = self.folder.path / "start.safetensors"
        if path.exists():
            merger.module.load_state_dict(load_file(path))
        else:
            batch = calibration_batch(self.images.train, self.teacher, self.image_size, count, self.seed)
            with _bar("2/5 start", self.progress) as tell:
                student.to(self.device)
                found = calibrate(
                    student, batch, start=start, plain=copy.deepcopy(self.teacher.net).to(self.device), seed=self.seed,
                    batch_size=min(64, self.recovery.batch_size), multi_label=self.images.multi_label, progress=tell,
                )  # fmt: skip
            student.cpu()
            self.keep("start", found.as_dict)
            save_file(merger.module.state_dict(), path)
        self.proofs["started"] = self._judged("started", lambda: student)
        self.say(f"2/5 start: {self._in_words('started')}")
        return student

    def recover(
        self, student: nn.Module, epochs: float | None, seconds: float | None, augmentation: Augmentation
    ) -> None:
        """3. Fine-tuning, guided by the plain model."""
        if epochs == 0:
            self.recovered: dict[str, Any] = {"steps": 0, "epochs": 0.0, "seconds": 0.0, "history": []}
        else:
            per_epoch = len(self.images.train) // self.recovery.batch_size
            if seconds is not None:
                length = self.keep("length", lambda: {"steps": self._steps_in(seconds, student, augmentation)})
                steps = length["steps"]
            else:
                steps = steps_of(epochs, None, per_epoch)
            self.say(f"3/5 recover: {steps} steps of {self.recovery.batch_size} images, {steps / per_epoch:.2g} epochs")
            self.recovered = self._distill(student, steps, augmentation, self.folder.path / "recovery")
        student.cpu()
        self.proofs["recovered"] = self._judged("recovered", lambda: student)
        self.say(f"    recovered: {self._in_words('recovered')}")

    def finish(self, student: nn.Module, place: Place, drop: float, rounds: int) -> dict[str, Any]:
        """4. and 5. The proof, and the model in its folder."""
        self.say("4/5 prove: measuring the speed")
        speed = measure_speed(
            {"plain": self.teacher.net, "accelerated": student}, batch_size=min(32, self.recovery.batch_size),
            precision=self.speed_precision, rounds=rounds, device=self.device,
        )  # fmt: skip
        names = self.teacher.class_names or (self.images.class_names if self.labels else None)
        self.teacher.found.save(student, self.folder.path / MODEL_FOLDER, class_names=names or None, overwrite=True)
        timing = speed["accelerated"]
        results: dict[str, Any] = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "settings": self.folder.settings,
            "data": self.images.description,
            "metric": self.metric if self.labels else "agreement",
            "place": place.as_dict(),
            "start": json.loads((self.folder.path / "start.json").read_text()),
            "recovery": self.recovered,
            "proof": self.proofs,
            "speedup": {"predicted": place.predicted, "measured": timing.speedup},
            "speed": speed.as_dict(),
            "max_drop": drop if self.labels else None,
            "met": None,
            "advice": [],
            "environment": environment(self.device),
            "folder": str(self.folder.path),
        }
        if self.labels:
            lost = 100 * (self.proofs["plain"]["accuracy"] - self.proofs["recovered"]["accuracy"])
            results["met"] = lost <= drop
            if not results["met"]:
                length = self.recovered["epochs"]
                more = f"more training (--epochs {max(1.0, 3 * length):g})"
                results["advice"] = [more, *slower_but_safer(self.teacher.net, place)]
        draw_acceleration(results, self.folder.path / PICTURE_FILE)
        self.folder.finish(results)
        self.say(f"5/5 keep: {self.folder.path / MODEL_FOLDER}")
        return results

    def _distill(
        self, student: nn.Module, steps: int, augmentation: Augmentation, out: Path | None, *, quietly: bool = False
    ) -> dict[str, Any]:
        images = self.images
        if quietly:
            images = ImageSplits(
                images.train, None, images.test, images.class_names, images.multi_label, (), images.description
            )
        return distill(
            student, self.teacher.net, images, preprocessing=self.teacher.preprocessing,
            steps=steps, recovery=self.recovery, labels=self.labels,
            augmentation=augmentation, workers=self.workers, seed=self.seed, out=out,
            progress=self.progress and not quietly,
        )  # fmt: skip

    def _steps_in(self, seconds: float, student: nn.Module, augmentation: Augmentation) -> int:
        """Steps that fit into a time, by the time of a few: they run on a copy."""
        tried = 2
        while True:
            taken = self._distill(copy.deepcopy(student), tried, augmentation, None, quietly=True)["seconds"]
            if taken > 5 or taken > seconds / 20 or tried >= 128:
                return max(1, int(seconds / (taken / tried)))
            tried *= 4

    def _judged(self, name: str, model: Callable[[], nn.Module]) -> dict[str, Any]:
        """Scores on the held-out images, kept, and what they prove."""
        path = self.folder.path / f"scores-{name}.safetensors"
        if not path.exists():
            net = copy.deepcopy(model()).to(self.device)
            scores = scores_of(
                Classifier(net), self.images.test, self.teacher, image_size=self.image_size, workers=self.workers,
                batch_size=2 * self.recovery.batch_size, progress=self.progress,
            )  # fmt: skip
            save_file({"scores": scores}, path)
        return prove(self._scores(name), self._scores("plain"), self.targets)

    def _scores(self, name: str) -> Tensor:
        return load_file(self.folder.path / f"scores-{name}.safetensors")["scores"]

    def _in_words(self, name: str) -> str:
        proof = self.proofs[name]
        agreement = f"agrees with the plain model on {100 * proof['agreement']:.1f}%"
        if proof["accuracy"] is None:
            return agreement
        lost = 100 * (proof["accuracy"] - self.proofs["plain"]["accuracy"])
        return f"{self.metric} {100 * proof['accuracy']:.2f}% ({lost:+.2f} points), {agreement}"


def calibration_batch(images: ImageSet, teacher: Teacher, image_size: int, count: int, seed: int) -> Tensor:
    """Some images as in evaluation, normalised: (n, 3, S, S)."""
    chosen, fit = some_of(images, count, seed), EvalTransform(image_size, teacher.preprocessing)
    pixels = torch.stack([fit(chosen[number]) for number in range(len(chosen))])
    return normalize(pixels, teacher.preprocessing)


@contextmanager
def _bar(title: str, shown: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, with the time that is left."""
    if not (shown and sys.stderr.isatty()):
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, share: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(f"{title}: {what}", total=1.0)
            bar.update(tasks[what], completed=share)

        yield tell
