"""Put a saved model on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from patchmerger.hub.folders import INDEX_NAME, SHARDS, WEIGHTS_NAME
from patchmerger.hub.saved_model import SavedConfig, describe
from patchmerger.hub.saving import save
from patchmerger.reducers.names import METHODS

_CARD = "README.md"
# Weights of an earlier upload that this one does not replace would be read in its place, or beside it.
_OLD_WEIGHTS = [WEIGHTS_NAME, INDEX_NAME, SHARDS]


def push_to_hub(
    model: nn.Module,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a model saved by patchmerger",
    create_pr: bool = False,
    **options: Any,
) -> str:
    """Save a model and upload it to the Hugging Face Hub, from where ``patchmerger.load(name)`` gets it.

    Weights and config of an earlier upload are replaced, in a commit of their own; a model card (``README.md``) that
    is there stays as it is.

    Args:
        model: As for :func:`patchmerger.save`.
        name: ``"user/name"``; made where it does not exist.
        private: Whether only you see it; by default as your account is set. Of one that exists it changes nothing.
        token: Your access token; by default the one of ``hf auth login``.
        revision: Branch to upload to; the main one by default.
        commit_message: Of the upload.
        create_pr: Open a pull request in place of committing.
        **options: As for :func:`patchmerger.save`: preprocessing, class_names and so on.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The model cannot be saved, or ``name`` is none; nothing was uploaded.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"name ({name!r}) must be 'user/name'; a revision goes into revision=")
    if "overwrite" in options:
        raise ValueError("overwrite is for folders: an upload is a commit, and what was there stays in the history")
    api = huggingface_hub.HfApi(token=token, library_name="patchmerger")
    with TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary) / "model", **options)
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        if not api.file_exists(repository, _CARD, revision=revision):
            model_card(describe(folder), repository).save(folder / _CARD)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=_OLD_WEIGHTS,
        )
    return str(commit.commit_url)


def model_card(saved: SavedConfig, name: str) -> ModelCard:
    """A short model card: what the model is, where it merges, how to load it."""
    changed = bool(saved.mergers) or saved.placing is not None
    tags = [*(["patchmerger"] if changed else []), saved.library, "vision"]
    data = ModelCardData(
        library_name=tags[0],
        pipeline_tag="image-classification" if saved.num_classes else "image-feature-extraction",
        tags=tags,
    )
    classes = f" with {saved.num_classes} classes" if saved.num_classes else ""
    paragraphs = [f"# {name}", f"A `{saved.architecture}` of {saved.library}{classes}."]
    if saved.placing is not None:
        paragraphs.append(
            f"It looks at an image through {saved.placing.num_tokens} windows, placed by the sampler "
            f'"{saved.placing.sampler}" ([arXiv 2507.01654](https://arxiv.org/abs/2507.01654)), in place of a grid of '
            "patches."
        )
    if saved.mergers:
        merged = [
            f"- after block {m.after}, {METHODS[m.reducer].title} leaves {m.num_tokens} tokens" for m in saved.mergers
        ]
        paragraphs += [
            "Tokens are merged on the way, so that the later blocks have less to do "
            "([arXiv 2202.12015](https://arxiv.org/abs/2202.12015)):",
            "\n".join(merged),
        ]
    if changed:
        paragraphs.append(f"{saved.library} alone knows nothing of this; load the model with patchmerger:")
    paragraphs.append(f'```python\nimport patchmerger\n\nmodel = patchmerger.load("{name}")\n```\n')
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(paragraphs))
