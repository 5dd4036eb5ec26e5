"""Commands of patchmerger, run one group after the other within a time: interrupted, resumed, handed over."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from patchmerger.runs.files import atomic_file, read_json, write_json
from patchmerger.runs.run_folder import RESULTS_FILE, SETTINGS_FILE
from patchmerger.studies.transfer_results import FEW_SHOT, FINE_TUNED, UPSTREAM
from patchmerger.training.fitting import PREDICTIONS_FILE

STATE_FILE, ARCHIVE_FILE = "queue.json", "finished.tar.gz"
PROGRAM = (sys.executable, "-m", "patchmerger.cli")
_GRACE = 20.0  # seconds for processes to end after Ctrl-C
_FAILURES = 2  # after so many a job is left out


@dataclass(frozen=True)
class Job:
    """A command of patchmerger whose result is wanted.

    Attributes:
        name: Its name, that of its folder, and of its result.
        command: What is run, without the program. ``{root}`` is the folder of all jobs.
        small: Options that make it a matter of seconds on a CPU, to try the queue.
        device: The options that say where it runs.
        processes: How many of the same command share the work.
        group: Jobs of one group that follow each other run at once.
        keeps: A path in its folder that later jobs need and that is too large for the archive.
        suffix: That of its result: nothing for a folder with a ``results.json``.
    """

    name: str
    command: str
    small: str
    device: tuple[str, ...] = ("--training.accelerator",)
    processes: int = 1
    group: str = ""
    keeps: str = ""
    suffix: str = ""

    def arguments(self, names: dict[str, str], *, accelerator: str | None, small: bool) -> list[str]:
        """The arguments of the program."""
        arguments = shlex.split(self.command.format(**names))
        if small:
            arguments += shlex.split(self.small)
        if accelerator is not None:
            arguments += [part for option in self.device for part in (option, accelerator)]
        return [*arguments, "--out", f"{names['root']}/{self.name}{self.suffix}"]

    def result(self, root: Path) -> Path:
        """The JSON file with the result."""
        path = root / f"{self.name}{self.suffix}"
        return path if self.suffix else path / RESULTS_FILE


class Queue:
    """Jobs with what is known of them, kept in a folder.

    Args:
        jobs: In the order of their worth.
        root: The folder of all of them.
        program: What is run with their arguments.
    """

    def __init__(self, jobs: Sequence[Job], root: Path, program: Sequence[str] = PROGRAM) -> None:
        self.jobs, self.root, self.program = jobs, root, program
        root.mkdir(parents=True, exist_ok=True)
        file = root / STATE_FILE
        self.state: dict[str, dict[str, Any]] = read_json(file) if file.exists() else {}
        for job in jobs:
            known = self.state.setdefault(job.name, {"done": False, "failures": 0, "seconds": 0.0})
            if job.keeps and not (root / job.name / job.keeps).exists():
                known["done"] = False

    @property
    def done(self) -> bool:
        """Whether all jobs are."""
        return all(self.state[job.name]["done"] for job in self.jobs)

    def work(
        self, seconds: float, *, accelerator: str | None, small: bool, names: Mapping[str, str] = {}, processes: int = 4
    ) -> None:
        """Run one group of jobs after the other until all are done or the time is over.

        Args:
            seconds: After so many, processes are interrupted; each job resumes in the next call.
            accelerator: What to run on; by default what each command chooses.
            small: Try the queue with budgets of seconds.
            names: What stands for a ``{name}`` in the commands.
            processes: How many run at once at most.
        """
        end = time.monotonic() + seconds
        names = {**names, "root": shlex.quote(str(self.root))}
        for _, group in groupby(self.jobs, key=lambda job: job.group or job.name):
            waiting = [job for job in group if self._is_open(job)]
            while waiting and time.monotonic() < end:
                batch, waiting = waiting[:processes], waiting[processes:]
                starts = [(job, job.arguments(names, accelerator=accelerator, small=small)) for job in batch]
                self._run(starts, processes, end)
                write_json(self.root / STATE_FILE, self.state)

    def _is_open(self, job: Job) -> bool:
        known = self.state[job.name]
        return not known["done"] and known["failures"] < _FAILURES

    def _run(self, starts: Sequence[tuple[Job, Sequence[str]]], processes: int, end: float) -> None:
        """Run jobs at once until they have ended or the time is over, and note what became of them."""
        began = time.monotonic()
        planned = [(job, arguments) for job, arguments in starts for _ in range(min(job.processes, processes))]
        shares = _shares(len(planned))
        children: list[tuple[Job, subprocess.Popen[bytes]]] = []
        try:
            for (job, arguments), cores in zip(planned, shares, strict=True):
                print(f"{job.name}: {shlex.join(arguments)}", flush=True)
                children.append((job, self._start(job, arguments, cores)))
            while time.monotonic() < end and any(child.poll() is None for _, child in children):
                time.sleep(0.2)
            interrupted = {job.name for job, child in children if child.poll() is None}
        finally:
            _end([child for _, child in children])
        for job, _ in starts:
            known, codes = self.state[job.name], [child.returncode for of, child in children if of is job]
            known["seconds"] += time.monotonic() - began
            if job.name not in interrupted:
                known["done"] = not any(codes)
                known["failures"] += any(codes)
            if job.name not in interrupted and any(codes):
                print(f"{job.name} failed: {self._tail(job)}", flush=True)

    def _start(self, job: Job, arguments: Sequence[str], cores: Sequence[int]) -> subprocess.Popen[bytes]:
        with (self.root / f"{job.name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.program, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": str(max(1, len(cores)))}, preexec_fn=_Pinned(cores),
            )  # fmt: skip

    def _tail(self, job: Job) -> str:
        lines = (self.root / f"{job.name}.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def hand_over(self, out: Path) -> None:
        """Write what is known to a folder: the state, the results of finished jobs, and an archive to resume from.

        Few files, as some machines give back no more: the results of a group are one, those of a step none.
        The archive has the finished trainings without their weights, so that a bare machine trains none twice.
        """
        out.mkdir(parents=True, exist_ok=True)
        write_json(self.root / STATE_FILE, self.state)
        write_json(out / STATE_FILE, self.state)
        for name, group in groupby(self.jobs, key=lambda job: job.group or job.name):
            done = [job for job in group if self.state[job.name]["done"] and not job.keeps]
            results = {job.name: read_json(job.result(self.root)) for job in done}
            if results:
                write_json(out / f"{name}.json", results.get(name, results))
        with atomic_file(out / ARCHIVE_FILE) as partial, tarfile.open(partial, "w:gz") as archive:
            for file in self._finished():
                archive.add(file, file.relative_to(self.root))

    def _finished(self) -> Iterator[Path]:
        """The state, what was measured, and of each finished training what is small."""
        kept = [self.root / job.name for job in self.jobs if job.keeps]
        yield from self.root.glob("*.json")
        yield from self.root.glob("*/speed/*.json")
        yield from (path for path in self.root.glob(f"*/{SETTINGS_FILE}") if path.parent not in kept)
        for results in self.root.rglob(RESULTS_FILE):
            folder = results.parent
            whole = (folder.parent / FINE_TUNED / RESULTS_FILE).exists()
            if folder in kept or (folder.name in (UPSTREAM, FEW_SHOT) and not whole):
                continue  # what comes after it needs its weights
            yield results
            names = (PREDICTIONS_FILE,) if folder.parent == self.root else (PREDICTIONS_FILE, SETTINGS_FILE)
            yield from (folder / name for name in names if (folder / name).exists())


def _shares(count: int) -> list[list[int]]:
    """The cores of each of several processes, which then choose as many data loaders as they can feed."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(count)]
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // count)
    return [[cores[(place * each + number) % len(cores)] for number in range(each)] for place in range(count)]


@dataclass(frozen=True)
class _Pinned:
    """Binds a new process to its cores; Ctrl-C reaches it even where the shell before it ignores that."""

    cores: Sequence[int]

    def __call__(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes as Ctrl-C does; kill those that have not ended after a while, with their own children."""
    for child in children:
        if child.poll() is None:
            child.send_signal(signal.SIGINT)
    last = time.monotonic() + _GRACE
    for child in children:
        try:
            child.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def resume(archive: Path, root: Path) -> None:
    """Put the finished trainings of an earlier call back."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as found:
        if hasattr(tarfile, "data_filter"):  # not in Python 3.11.0 to 3.11.3, such as Debian 12 has
            found.extraction_filter = tarfile.data_filter
        found.extractall(root)
