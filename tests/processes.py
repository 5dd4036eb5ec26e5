"""Functions and programs in processes of their own, which can be killed; slow libraries are imported once for them."""

import contextlib
import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([  # nothing of ours: a program must import what it needs
    "lightning.pytorch", "timm.optim", "transformers.modeling_utils", "datasets", "sklearn.linear_model", "scipy.stats",
    "torchmetrics", "pydantic",
])  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit code (negative: the signal that killed it), and what it printed."""

    code: int
    out: str
    err: str


class Running:
    """A process that runs a function of a test module.

    Args:
        function: A module's, not a local one.
        arguments: For it.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._folder.name) / name for name in ("out", "err"))
        self.process = _CONTEXT.Process(target=_captured, args=(self.out, self.err, function, arguments))
        self.process.start()

    def wait(self) -> Finished:
        """Until it ends."""
        self.process.join()
        out, err = (path.read_text() if path.exists() else "" for path in (self.out, self.err))
        self._folder.cleanup()
        return Finished(self.process.exitcode, out, err)


def run(function: Callable[..., Any], *arguments: Any) -> Finished:
    """Run a function in a process of its own."""
    return Running(function, *arguments).wait()


def _captured(out: Path, err: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    with (
        out.open("w", buffering=1) as stdout,
        err.open("w", buffering=1) as stderr,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
            sys.exit(1)


def run_program(code: str, folder: Path, filename: str = "program.py") -> Finished:
    """Run a program in a folder, in a process that has imported nothing of ours; warnings are errors there.

    Args:
        code: The program.
        folder: Where it runs, and where its file, its output and its errors are kept.
        filename: What tracebacks call it.
    """
    (folder / filename).write_text(code)
    process = _CONTEXT.Process(target=_run_file, args=(folder, filename))
    process.start()
    process.join()
    return Finished(process.exitcode, *((folder / name).read_text() for name in ("output.txt", "errors.txt")))


def _run_file(folder: Path, filename: str) -> None:
    import torch

    os.chdir(folder)
    with open("errors.txt", "w") as errors, open("output.txt", "w") as output:
        os.dup2(errors.fileno(), 2)
        os.dup2(output.fileno(), 1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT asks transformers for it
    runpy.run_path(filename, run_name="__main__")
