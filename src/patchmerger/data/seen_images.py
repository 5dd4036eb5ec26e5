"""Whether the model of a run was trained on images that a seed, or a share for validation, holds out."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from patchmerger.data.splits import ImageSplits
from patchmerger.runs.run_folder import SETTINGS_FILE, recorded


def warn_of_seen(
    model: str | Path, source: str, images: ImageSplits, *, seed: int, among: Collection[str], stacklevel: int = 3
) -> None:
    """Say where a run was trained on the same data, of which another seed or share for validation was held out.

    Its model may have seen some of the images that are held out now, then.

    Args:
        model: The folder of a run, or that of its model; of other models nothing is known.
        source: Of the data, as settings have it.
        images: The images of this seed.
        seed: What they were held out by.
        among: The sets that numbers are computed on, such as ``("test",)``; those that the data has itself are the same
            for all seeds and shares.
        stacklevel: As in ``warnings.warn``.
    """
    sets = [name for name in among if name in images.held_out]
    known = _settings(Path(model).expanduser()) if sets else {}
    data, trained_with = known.get("data", {}), known.get("seed")
    if trained_with is None or not _same(data.get("source"), source):
        return
    share, then, now = data.get("validation"), [], []
    by_share = [name for name in sets if share is not None and images.held_out[name] not in (None, share)]
    if trained_with != seed:
        then, now = [f"seed {trained_with}"], [f"seed ({seed})"]
    else:
        sets = by_share
    if by_share:
        then.append(f"data.validation {share:g}")
        now.append(f"data.validation ({images.held_out[by_share[0]]:g})")
    if then:
        warnings.warn(
            f"model ({model}) was trained on data ({source}) with {' and '.join(then)}, and {' with '.join(now)} holds "
            f"out other {' and '.join(sets)} images, of which it may have seen some in training: give "
            f"{' and '.join(then)}",
            stacklevel=stacklevel,
        )


def _settings(model: Path) -> dict[str, Any]:
    """What fixed the run that a model is of; nothing where it is of none."""
    folder = model.parent if model.name == "model" else model
    if not (folder / SETTINGS_FILE).is_file():
        return {}
    try:
        return recorded(folder)[1]
    except ValueError:  # a file of the same name that is no run's
        return {}


def _same(source: object, other: str) -> bool:
    """Whether two sources are one: the same word, or the same folder by other paths."""
    if not isinstance(source, str):
        return False
    return source == other or (Path(source).is_dir() and Path(source).resolve() == Path(other).resolve())
