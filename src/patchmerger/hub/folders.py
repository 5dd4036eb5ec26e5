"""The folder of a saved model: its files, where it is (here, in a run, on the Hub), and what may be replaced."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
PROCESSOR_NAME = "preprocessor_config.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")

_NAME = re.compile(r"(hf[-_]hub:)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


_ANSWERS: dict[type[Exception], str] = {  # first those that are a kind of another
    GatedRepoError: "gates the model of that name: accept its terms on its page, then log in with `hf auth login`",
    RevisionNotFoundError: "has a model of that name, but not {which}",
    RepositoryNotFoundError: "has no model of that name, or a private one: `hf auth login` lets you in",
    HFValidationError: "has no model of that name",
    LocalEntryNotFoundError: "cannot be reached; nor was {which} downloaded before",
}


def find_folder(folder: str | os.PathLike[str], revision: str | None, *, weights: bool = True) -> Path:
    """The folder of a saved model, or of that of a run; a name on the Hub is downloaded, unless a folder has it.

    A name is ``"user/name"``, ``"user/name@revision"`` or either with ``"hf-hub:"`` before it; ``weights`` says whether
    they are downloaded too.

    Raises:
        FileNotFoundError: There is no such folder, and no such model on the Hub or no way to reach it.
        ValueError: It is no folder of a model, or a revision is given that means nothing.
    """
    match = _NAME.fullmatch(folder) if isinstance(folder, str) else None
    if match is None or Path(folder).expanduser().exists():
        if revision is not None:
            raise ValueError(f"revision ({revision!r}) is for a name on the Hub, but folder ({folder}) is none")
        return _check_folder(folder)
    if revision is not None and match["revision"] is not None:
        raise ValueError(f"revision ({revision!r}) is given, and folder ({folder}) names one too: give one of them")
    name, wanted = match["name"], [CONFIG_NAME, PROCESSOR_NAME]
    path = _download(
        name, revision or match["revision"], [*wanted, WEIGHTS_NAME, INDEX_NAME, SHARDS][: 5 if weights else 2]
    )
    if not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{name} on the Hugging Face Hub has no {CONFIG_NAME}: it is no model of a known form")
    if weights and not any((path / file).is_file() for file in (WEIGHTS_NAME, INDEX_NAME)):
        raise FileNotFoundError(
            f"{name} on the Hugging Face Hub has no {WEIGHTS_NAME}; pickled weights, such as pytorch_model.bin, can "
            "run any code when they are read and are not downloaded: load them with their own library, then "
            "patchmerger.save(model, folder)"
        )
    return path


def how_to_convert(path: Path, conversion: str | None = None) -> str:
    """Why weights alone are not loaded, and how to come to a folder that is."""
    conversion = conversion or f"patchmerger convert {path} --architecture NAME --out FOLDER"
    if path.suffix == ".safetensors":
        return f"{path} holds weights alone: {conversion}"
    return f"{path} is a pickle, which can run any code when it is read; what reads its weights alone: {conversion}"


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace anything but a saved model, and that only when asked."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"folder ({target}) is a file")
    held = {path.name for path in target.iterdir()}
    if held and not overwrite:
        raise FileExistsError(f"folder ({target}) is not empty: take another, or replace the model with overwrite=True")
    ours = (CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME, PROCESSOR_NAME)
    others = sorted(name for name in held if name not in ours and not _SHARD.fullmatch(name))
    if others:
        raise FileExistsError(
            f"folder ({target}) holds more than a saved model ({', '.join(others[:3])}), which overwrite=True would "
            "delete: choose another"
        )


def _check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder of a model as a path; that of a run has it in its folder ``model``."""
    path = Path(folder).expanduser()
    if path.suffix in PICKLES and not path.is_dir():
        raise ValueError(how_to_convert(path))
    if path.is_file():
        if path.suffix == ".safetensors" and not (path.parent / CONFIG_NAME).is_file():
            raise ValueError(how_to_convert(path))
        raise ValueError(f"folder ({path}) is a file: give the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    if not path.is_dir():
        raise FileNotFoundError(f"folder ({folder}) does not exist")
    if (path / CONFIG_NAME).is_file():
        return path
    if (path / "model" / CONFIG_NAME).is_file():
        return path / "model"
    if (path / "settings.json").is_file():
        below = sorted(str(config.parent) for config in path.glob(f"*/**/model/{CONFIG_NAME}"))
        if below:
            raise FileNotFoundError(f"folder ({folder}) holds {len(below)} models: name one, such as {below[0]}")
        raise FileNotFoundError(f"folder ({folder}) is that of a run that has saved no model: is it finished?")
    return path


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    """The model's files in the cache of huggingface_hub; what is there already is not fetched again."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, library_name="patchmerger"))
    except (*_ANSWERS,) as error:
        said = next(said for kind, said in _ANSWERS.items() if isinstance(error, kind))
        which = "it" if revision is None else f"its revision {revision!r}"
        raise FileNotFoundError(
            f"folder ({name}) does not exist here, and the Hugging Face Hub {said.format(which=which)} ({error})"
        ) from error
