"""What a terminal can do to a command: other encodings, closed pipes, Ctrl-C; errors and warnings, in one line."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TextIO

from patchmerger.commands.advice import for_command_line
from patchmerger.runs.extras import MissingExtraError

FAILED, INTERRUPTED, CLOSED_PIPE = 2, 130, 141
_ERRORS = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)
_REPLACEMENTS = str.maketrans(
    {"×": "x", "→": "->", "…": "...", "−": "-", "–": "-", "±": "+/-", "·": "*", "²": "2", "³": "3", "Σ": "sum"}
)
_HORIZONTAL, _VERTICAL = "─━═╌╍┄┅", "│┃║╎╏┆┇"


def guarded(
    run: Callable[[], int],
    name: str | None,
    *,
    resumes: bool = False,
    show_traceback: bool = False,
    options: Callable[[], Collection[str]] = tuple,
) -> int:
    """Run a command, and turn what goes wrong into one line and an exit status, and each warning into one line.

    Args:
        run: The command.
        name: Its name, which the line begins with.
        resumes: Whether the same command again goes on where it was interrupted.
        show_traceback: Show where an error was raised, before the line, and where a warning was given.
        options: Gives the names of the command's options, which advice is put into.
    """
    codecs.register_error("patchmerger", replace_characters)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="patchmerger")
    warnings.filterwarnings("once", category=UserWarning)
    show = warnings.showwarning  # unlike the format of warnings, Lightning leaves it alone
    if not show_traceback:
        warnings.showwarning = lambda message, *_, **__: _warn(message, options)
    try:
        try:
            return run()
        except SystemExit as stop:  # after --help, or an option that cannot be read
            if isinstance(stop.__context__, BrokenPipeError):  # rich leaves so
                raise stop.__context__ from None
            return stop.code if isinstance(stop.code, int) else 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the results has read enough. Where nobody reads what is done, it is not done to the end.
        _discard(sys.stdout)
        return CLOSED_PIPE if _is_closed(sys.stderr) else 0
    except _ERRORS as error:
        if show_traceback:
            traceback.print_exc()
        print(f"{_program(name)}: {for_command_line(_in_a_line(error), options())}", file=sys.stderr)
        _discard_what_cannot_be_written(sys.stdout)
        return FAILED
    except KeyboardInterrupt:
        goes_on = ": the same command again goes on from the last checkpoint" if resumes else ""
        print(f"\n{_program(name)}: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    finally:
        warnings.showwarning = show


def leave_at_once_when_interrupted() -> None:
    """From now on Ctrl-C, while Python cleans up, ends the process without a traceback."""
    with suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def replace_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for characters that a stream lacks: ``x`` for ×, lines of ``-`` and ``|``, or a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    written = "".join(_replacement(sign) for sign in error.object[error.start : error.end])
    return written, error.end


def is_first_process() -> bool:
    """Whether this process shows the results, of several that train together."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return True
    return bool(torch.distributed.get_rank() == 0)


def _replacement(sign: str) -> str:
    if sign in _HORIZONTAL:
        return "-"
    if sign in _VERTICAL:
        return "|"
    if "─" <= sign <= "╿":  # corners and crossings
        return "+"
    written = sign.translate(_REPLACEMENTS)
    return written if written.isascii() else "?"


def _warn(message: Warning | str, options: Callable[[], Collection[str]]) -> None:
    with suppress(OSError):  # nobody reads them
        print(f"warning: {for_command_line(' '.join(str(message).split()), options())}", file=sys.stderr)


def _program(name: str | None) -> str:
    return "patchmerger" if name is None else f"patchmerger {name}"


def _in_a_line(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and not isinstance(error, MissingExtraError):
        return f"{error.name} is not installed; the command line needs: pip install 'patchmerger[train]'"
    return " ".join(str(error).split()) or type(error).__name__


def _is_closed(stream: TextIO) -> bool:
    try:
        stream.write("")
        stream.flush()
    except OSError:
        _discard(stream)
        return True
    return False


def _discard_what_cannot_be_written(stream: TextIO) -> None:
    with suppress(ValueError):
        _is_closed(stream)


def _discard(stream: TextIO) -> None:
    """What is left in the buffer must not be written when Python exits."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
