"""What a terminal can do to a command: other encodings, closed pipes, Ctrl-C; and its errors, in one line."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

INTERRUPTED = 130
_ERRORS = (ValueError, OSError, FloatingPointError)


def guarded(run: Callable[[], int], name: str | None, *, traceback: bool = False, resumes: bool = False) -> int:
    """Run a command, and turn what goes wrong into one line and an exit status.

    Args:
        run: The command.
        name: Its name, which the line begins with.
        traceback: Raise errors instead.
        resumes: Whether the same command again goes on where it was interrupted.
    """
    own = "patchmerger" if name is None else f"patchmerger {name}"
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_written(stream)
    warnings.filterwarnings("once", category=UserWarning)
    try:
        try:
            return run()
        except SystemExit as stop:  # after --help, or an option that cannot be read
            return stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough. What is left in the buffer must not be written when Python exits.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if traceback:
            raise
        needed = f"{error.name} is not installed; the command line needs: pip install 'patchmerger[train]'"
        print(f"{own}: {needed}", file=sys.stderr)
        return 2
    except _ERRORS as error:
        if traceback:
            raise
        print(f"{own}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        _leave_at_once_when_interrupted_again()
        goes_on = ": the same command again goes on from the last checkpoint" if resumes else ""
        print(f"\ninterrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED


def is_first_process() -> bool:
    """Whether this process shows the results, of several that train together."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return True
    return bool(torch.distributed.get_rank() == 0)


def _replace_what_cannot_be_written(stream: Any) -> None:
    """A stream that is not UTF-8 writes ``?`` for a sign that it lacks, such as × or →."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


def _leave_at_once_when_interrupted_again() -> None:
    """A second Ctrl-C, while Python cleans up, ends the process without a traceback."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
