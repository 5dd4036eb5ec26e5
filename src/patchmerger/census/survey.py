"""The census: every architecture of timm, transformers and torchvision is named, built, and tried with a merger."""

from __future__ import annotations

import difflib
import importlib.util
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchmerger.census.census import LIBRARIES, Census, Finding, Libraries, Library, matches
from patchmerger.census.check import observe_model, try_merger
from patchmerger.census.observe import NotAsDescribedError, fill_stem
from patchmerger.hosts.example_inputs import example_input
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import check_out, write_text
from patchmerger.runs.meta_device import meta_device
from patchmerger.runs.progress import progress_bar
from patchmerger.runs.silence import silent_libraries

# What is mapped to no image encoder or classifier and yet is one: towers of larger models, videos, spectrograms.
_TOWERS = re.compile(
    r"(Vision(Model|Encoder|Transformer|TransformerPretrainedModel|ModelWithProjection)|ImageModel|ViTModel"
    r"|ForImageClassification|ForVideoClassification)$"
)
_OTHERS = ("ASTForAudioClassification", "ASTModel", "RadioModel", "Sapiens2Model")

# Not the defaults: ViTMAE leaves patches out at random, also when it is not trained.
_OPTIONS: dict[str, dict[str, Any]] = {"ViTMAEModel": {"mask_ratio": 0.0}}

# What does not run on the meta device: SigLIP 2 reads the size of each image off a tensor.
_ON_CPU = ("Siglip2",)


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
    versions = {name: version(name) for name in ("patchmerger", "torch", *libraries)}
    census = Census(findings, {"python": platform.python_version(), **versions}, missing, command or "")
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


@dataclass(frozen=True)
class Architecture:
    """Something that a library can build: an architecture of timm or torchvision, or a class of transformers.

    ``build`` makes it, on the meta device where it can run there.
    """

    library: Library
    name: str
    build: Callable[[], nn.Module]


def installed(library: Library) -> bool:
    """Whether ``library`` can be imported."""
    return importlib.util.find_spec(library) is not None


def architectures(library: Library, filter: str = "*") -> list[Architecture]:
    """Everything that ``library`` names and that ``filter`` (``"vit_*"``, say) lets through, in its order."""
    listed = {"timm": _of_timm, "transformers": _of_transformers, "torchvision": _of_torchvision}[library]()
    return [
        Architecture(library, name, make if name.startswith(_ON_CPU) else partial(_on_meta, make))
        for name, make in listed
        if matches(name, filter)
    ]


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with meta_device():
            return make()
    except RuntimeError as error:
        if "meta tensor" not in str(error):  # which is no fault of the model
            raise
    return make()


def _of_timm() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    import timm

    for name in timm.list_models(exclude_filters="patchmerger_*"):  # the zoo is made of these
        yield name, partial(timm.create_model, name)


def _of_torchvision() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Image classifiers: those whose builders stand in ``torchvision.models`` itself."""
    from torchvision import models

    for name in models.list_models(module=models):
        yield name, partial(models.get_model, name)


def _of_transformers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The classes that model types are mapped to as image encoders or classifiers, and towers by their names."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = {name for name in dir(transformers) if _TOWERS.search(name) and not name.startswith("Auto")}
    mappings: tuple[dict[str, Any], ...] = (
        auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    for mapping in mappings:
        for mapped in mapping.values():
            names |= {mapped} if isinstance(mapped, str) else set(mapped)
    for name in sorted(names.union(_OTHERS), key=str.lower):
        yield name, partial(_make_transformer, name)


def _make_transformer(name: str) -> nn.Module:
    import transformers

    cls: Any = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**_OPTIONS.get(name, {})))
    return model
