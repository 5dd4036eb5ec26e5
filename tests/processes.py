"""Functions run in processes of their own, which can be killed; what they need is imported once for all of them."""

import contextlib
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["patchmerger.training.fitting", "datasets", "timm"])


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
