"""The folder of a saved model: its files, and how it appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PROCESSOR_NAME = "preprocessor_config.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
CONVERSION = (
    "make the model with its own library (and insert), then "
    "model.load_state_dict(torch.load(path, weights_only=True)) and patchmerger.save(model, folder)"
)

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a model as a path, that of a run or of its model; refused, with what would do, where it is none."""
    path = Path(folder).expanduser()
    if path.is_dir():
        return _model_of_run(path)
    if path.suffix in PICKLES:
        raise ValueError(how_to_convert(path))
    if path.is_file():
        raise ValueError(f"folder ({path}) is a file: give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    raise FileNotFoundError(f"folder ({folder}) does not exist")


def _model_of_run(folder: Path) -> Path:
    """The folder ``model`` of the folder of a run; any other folder as it is."""
    if (folder / CONFIG_NAME).is_file():
        return folder
    if (folder / "model" / CONFIG_NAME).is_file():
        return folder / "model"
    if (folder / "settings.json").is_file():
        below = sorted(str(path.parent) for path in folder.glob(f"*/**/model/{CONFIG_NAME}"))
        if below:
            raise FileNotFoundError(f"folder ({folder}) holds {len(below)} models: name one, such as {below[0]}")
        raise FileNotFoundError(f"folder ({folder}) is that of a run that has saved no model: is it finished?")
    return folder


def how_to_convert(path: Path, conversion: str = CONVERSION) -> str:
    """Why pickled weights are not loaded, and how to come to a folder that is."""
    return f"{path} is a pickle, which can run any code when it is read, so it is not loaded; convert it: {conversion}"


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file of a saved model that holds a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"folder ({path.parent}) has no {path.name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object: it describes no model")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as people can read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` to write into; it takes the place of ``target`` when nothing failed."""
    new = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    new.mkdir(parents=True)
    try:
        yield new
        _put_in_place(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a saved model, and that only when asked."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"folder ({target}) is a file")
    held = {path.name for path in target.iterdir()}
    if held and not overwrite:
        raise FileExistsError(
            f"folder ({target}) is not empty: choose another, or replace the model with overwrite=True"
        )
    others = sorted(name for name in held if not _is_of_a_model(name))
    if others:
        raise FileExistsError(
            f"folder ({target}) holds more than a saved model ({', '.join(others[:3])}), which overwrite=True would "
            "delete: choose another"
        )


def _is_of_a_model(name: str) -> bool:
    return name in (CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME, PROCESSOR_NAME) or _SHARD.fullmatch(name) is not None


def _put_in_place(new: Path, target: Path) -> None:
    """Rename, so that nobody ever sees half a model."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
