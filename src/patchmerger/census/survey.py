"""The census: every architecture of timm, transformers and torchvision, and whether it takes a merger."""

from __future__ import annotations

import difflib
import logging
import platform
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from patchmerger.census.architectures import LIBRARIES, Architecture, Library, architectures, installed
from patchmerger.census.check import Finding, examine
from patchmerger.census.findings import Census
from patchmerger.runs.files import write_text

Libraries: TypeAlias = Literal["all", Library]


def survey(
    *, library: Libraries = "all", filter: str = "*", out: Path | None = None, overwrite: bool = False
) -> Census:
    """Find out, for every architecture that the libraries name, whether it takes a merger.

    Each is built on the meta device, which holds no weights, and run with mergers of two sizes. Which tokens arrive at
    its blocks is observed, and not believed from what this library knows of it. All take some ten minutes.

    Args:
        library: "timm", "transformers", "torchvision", or "all".
        filter: Only architectures of this name; "vit_*" and the like take many, and "*dinov3*" finds them by a part.
        out: JSON file to write what was found to.
        overwrite: Replace that file if it exists.

    Returns:
        What was found, as printed and as written.

    Raises:
        ValueError: No architecture has such a name, or the library is not installed.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    if library not in ("all", *LIBRARIES):
        raise ValueError(f"library ({library!r}) must be one of {', '.join(map(repr, ('all', *LIBRARIES)))}")
    asked = LIBRARIES if library == "all" else (library,)
    missing = tuple(name for name in asked if not installed(name))
    if library in missing:
        raise ValueError(f"library ({library!r}) is not installed: pip install {library}")
    if out is not None and out.is_dir():
        raise ValueError(f"out ({out}) is a folder: name a file in it")
    if out is not None and out.exists() and not overwrite:
        raise FileExistsError(f"out ({out}) exists already: take another name, or --overwrite true")
    libraries = [name for name in asked if name not in missing]
    with _quiet():
        listed = [one for name in libraries for one in architectures(name, filter)]
        if not listed:
            raise ValueError(_no_match(libraries, filter))
        findings = _examine_all(listed)
    census = Census(findings, _versions(libraries), missing, _command(library, filter, out))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, census.as_json())
    return census


def _examine_all(listed: Sequence[Architecture]) -> tuple[Finding, ...]:
    findings = []
    with _progress(len(listed)) as report:
        for done, one in enumerate(listed):
            report(done, f"{one.library}: {one.name}")
            with torch.random.fork_rng(devices=[]):
                findings.append(examine(one.library, one.name, one.build))
    return tuple(findings)


@contextmanager
def _quiet() -> Iterator[None]:
    """What the libraries have to say of their own models is not asked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done, name: bar.update(task, completed=done, description=name)


def _no_match(libraries: Sequence[Library], filter: str) -> str:
    names = [one.name for library in libraries for one in architectures(library)]
    close = difflib.get_close_matches(filter, names, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"'*{filter.strip('*')}*' finds it as a part of a name"
    return f"filter ({filter!r}) matches no architecture of {', '.join(libraries)}; {hint}"


def _versions(libraries: Sequence[Library]) -> dict[str, str]:
    versions = {name: version(name) for name in ("patchmerger", "torch", *libraries)}
    return {"python": platform.python_version(), **versions}


def _command(library: Libraries, filter: str, out: Path | None) -> str:
    options = {"--library": (library, "all"), "--filter": (filter, "*"), "--out": (out, None)}
    given = [word for name, (value, default) in options.items() if value != default for word in (name, str(value))]
    return shlex.join(["patchmerger", "hosts", *given])
