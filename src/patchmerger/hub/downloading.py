"""Where a model is: a folder of this machine, or a name on the Hugging Face hub."""

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

from patchmerger.hub.folders import CONFIG_NAME, INDEX_NAME, PROCESSOR_NAME, WEIGHTS_NAME, check_folder

_NAME = re.compile(r"(hf[-_]hub:)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_CONFIGS = [CONFIG_NAME, PROCESSOR_NAME]
_WEIGHTS = [WEIGHTS_NAME, INDEX_NAME, "model-*-of-*.safetensors"]


def find_folder(folder: str | os.PathLike[str], revision: str | None, *, weights: bool = True) -> Path:
    """The folder of a saved model; a name on the hub is downloaded, unless a folder here has that name.

    Args:
        folder: A folder, ``"user/name"``, ``"user/name@revision"`` or either with ``"hf-hub:"`` before it.
        revision: Branch, tag or commit of a name on the hub.
        weights: Whether weights are downloaded too.

    Raises:
        FileNotFoundError: There is no such folder, and no such model on the hub or no way to reach it.
        ValueError: It is no folder of a model, or a revision is given that means nothing.
    """
    match = _NAME.fullmatch(folder) if isinstance(folder, str) else None
    if match is None or Path(folder).expanduser().exists():
        if revision is not None:
            raise ValueError(f"revision ({revision!r}) is for a name on the hub, but folder ({folder}) is none")
        return check_folder(folder)
    if revision is not None and match["revision"] is not None:
        raise ValueError(f"revision ({revision!r}) is given, and folder ({folder}) names one too: give one of them")
    name = match["name"]
    path = _download(name, revision or match["revision"], _CONFIGS + _WEIGHTS if weights else _CONFIGS)
    if not (path / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{name} on the Hugging Face hub has no {CONFIG_NAME}: it is no model of a known form")
    if weights and not any((path / file).is_file() for file in (WEIGHTS_NAME, INDEX_NAME)):
        raise FileNotFoundError(
            f"{name} on the Hugging Face hub has no {WEIGHTS_NAME}; pickled weights, such as pytorch_model.bin, can "
            "run any code when they are read and are not downloaded: load them with their own library, then "
            "patchmerger.save(model, folder)"
        )
    return path


def _download(name: str, revision: str | None, wanted: list[str]) -> Path:
    """The model's files in the cache of huggingface_hub; what is there already is not fetched again."""
    missing = f"folder ({name}) does not exist here, and"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, library_name="patchmerger"))
    except GatedRepoError as error:
        raise FileNotFoundError(
            f"{missing} the model of that name on the Hugging Face hub is gated: accept its terms on its page, then "
            "log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{missing} the model of that name on the Hugging Face hub has no revision {revision!r}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{missing} the Hugging Face hub has no model of that name, or a private one: `hf auth login` lets you in"
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{missing} the Hugging Face hub, where a model may have that name, cannot be reached; nor was "
            f"{'it' if revision is None else f'its revision {revision!r}'} downloaded before ({error})"
        ) from error
