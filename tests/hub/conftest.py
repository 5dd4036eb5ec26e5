"""Folders to save into, and no way to the Hugging Face Hub."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from conftest import make_vit
from patchmerger.hub import save
from patchmerger.insertion import insert


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of a machine that is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that does not exist yet, alone in its parent."""
    return tmp_path / "models" / "mine"


@pytest.fixture
def saved(folder: Path) -> Path:
    """A saved timm model with a merger."""
    return save(insert(make_vit(), 4), folder)


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no reports of what this library checks itself."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity(verbosity)
