"""The census: every architecture of timm, transformers and torchvision is built, and tried with a merger."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from patchmerger.census.architectures import Architecture, architectures, installed
from patchmerger.census.census import LIBRARIES, Census, Finding, Libraries, Library
from patchmerger.census.check import observe_model, try_merger
from patchmerger.census.observe import NotAsDescribedError, fill_stem
from patchmerger.hosts.example_inputs import example_input
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import check_out, write_text
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.silence import silent_libraries


def take_census(
    *,
    library: Libraries = "all",
    filter: str = "*",
    out: Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> Census:
    """Find out, for every architecture that the libraries name, whether it takes a merger.

    Each is built on the meta device, which holds no weights, and run with mergers of two sizes. Which tokens arrive at
    its blocks is observed, not taken from what this library knows of it. All take some ten minutes.

    Args:
        library: "timm", "transformers", "torchvision", or "all".
        filter: Only architectures of this name; "vit_*" and the like take many, and "*dinov3*" finds them by a part.
        out: JSON file to write what was found to.
        overwrite: Replace that file if it exists.
        command: The command line that asked for it, kept in the census.

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
    check_out(out, overwrite=overwrite)
    libraries = [name for name in asked if name not in missing]
    with silent_libraries():
        listed = [one for name in libraries for one in architectures(name, filter)]
        if not listed:
            raise ValueError(_no_match(libraries, filter))
        findings = _examine_all(listed)
    census = Census(findings, _versions(libraries), missing, command or "")
    if out is not None:
        write_text(out, census.as_json(), new=not overwrite)
    return census


def _examine_all(listed: Sequence[Architecture]) -> tuple[Finding, ...]:
    findings = []
    with progress_bar("census", len(listed)) as bar:
        for done, one in enumerate(listed):
            bar.describe(f"{one.library}: {one.name}", done)
            with torch.random.fork_rng(devices=[]):
                findings.append(examine(one.library, one.name, one.build))
    return tuple(findings)


def examine(library: str, name: str, build: Callable[[], nn.Module]) -> Finding:
    """Build one architecture, on the meta device, and find out whether it takes a merger."""
    try:
        model = build().eval()
    except Exception as error:
        return Finding(library, name, "", "not buildable", reason=_in_one_line(error))
    finding = Finding(library, name, host_class(model).__name__, "failed")
    try:
        return _examine(model, finding)
    except Exception as error:
        return replace(finding, reason=_in_one_line(error))


def _examine(model: nn.Module, finding: Finding) -> Finding:
    positions, refusal = try_merger(model)
    if refusal is not None:
        finding = replace(finding, kind=refusal.kind, reason=refusal.reason, way_out=refusal.way_out)
        if positions is None:
            return replace(finding, status="refused")
    plain, prefix = observe_model(model, positions, lambda: example_input(model), prepare=fill_stem)
    patches = plain.arriving[0] - prefix
    if patches != plain.patches:
        raise NotAsDescribedError(
            f"{patches} tokens follow the {prefix} of its prefix, but it cuts an image into {plain.patches} patches"
        )
    blocks = len(plain.arriving)
    return replace(finding, status="merged", positions=positions, blocks=blocks, prefix=prefix, patches=patches)


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def _no_match(libraries: Sequence[Library], filter: str) -> str:
    names = [one.name for library in libraries for one in architectures(library)]
    close = difflib.get_close_matches(filter, names, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"'*{filter.strip('*')}*' finds it as a part of a name"
    return f"filter ({filter!r}) matches no architecture of {', '.join(libraries)}; {hint}"


def _versions(libraries: Sequence[Library]) -> dict[str, str]:
    versions = {name: version(name) for name in ("patchmerger", "torch", *libraries)}
    return {"python": platform.python_version(), **versions}
