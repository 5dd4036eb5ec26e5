"""Names on the Hugging Face Hub: found in a folder here, in the cache of earlier downloads, or said to be nowhere."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors

from conftest import make_images, make_vit
from hub.helpers import make_transformers, run
from patchmerger.hub import describe, load, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread")

COMMITS = {"main": "0" * 40, "v2": "1" * 40}


@pytest.fixture
def cached(hub_cache: Path, saved: Path) -> Path:
    """``someone/merged`` as huggingface_hub keeps it: two revisions, the second with other weights."""
    repository = hub_cache / "models--someone--merged"
    (repository / "refs").mkdir(parents=True)
    for revision, commit in COMMITS.items():
        (repository / "refs" / revision).write_text(commit)
    shutil.copytree(saved, repository / "snapshots" / COMMITS["main"])
    save(insert(make_vit(), 7), repository / "snapshots" / COMMITS["v2"])
    return repository / "snapshots" / COMMITS["main"]


@pytest.mark.parametrize("name", ["someone/merged", "hf-hub:someone/merged", "hf_hub:someone/merged@main"])
def test_a_name(cached, name):
    assert describe(name).mergers[0].num_tokens == 4
    assert torch.equal(load(name)(make_images()), load(cached)(make_images()))


@pytest.mark.parametrize("revision", ["v2", COMMITS["v2"]])
def test_a_revision(cached, revision):
    for name, keyword in ((f"someone/merged@{revision}", None), ("someone/merged", revision)):
        assert describe(name, revision=keyword).mergers[0].num_tokens == 7
        assert load(name, revision=keyword).blocks[1].merger.num_tokens == 7


def test_a_model_of_transformers(cached, tmp_path, quiet_transformers):
    model = insert(make_transformers(), 4)
    shutil.rmtree(cached)
    save(model, cached)
    assert torch.equal(run(load("someone/merged")), run(model))


def test_a_folder_of_that_name_goes_first(cached, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(insert(make_vit(), 2), "someone/merged")
    assert describe("someone/merged").mergers[0].num_tokens == 2
    assert load("someone/merged").blocks[1].merger.num_tokens == 2
    assert describe("hf-hub:someone/merged").mergers[0].num_tokens == 4
    with pytest.raises(
        ValueError, match=r"revision \('v2'\) is for a name on the Hub, but folder \(someone/merged\) is"
    ):
        load("someone/merged", revision="v2")


def test_a_path_is_never_a_name(cached):
    with pytest.raises(FileNotFoundError, match=r"folder \(someone/merged\) does not exist$"):
        load(Path("someone/merged"))


def test_offline_and_never_downloaded(cached):
    for read in (load, describe):
        with pytest.raises(
            FileNotFoundError, match=r"folder \(some/other\) does not exist here, and .* cannot be reached"
        ):
            read("some/other")
    with pytest.raises(FileNotFoundError, match=r"nor was its revision 'v3' downloaded before"):
        load("someone/merged@v3")


def test_two_revisions(cached):
    with pytest.raises(
        ValueError, match=r"revision \('v2'\) is given, and folder \(someone/merged@main\) names one too"
    ):
        load("someone/merged@main", revision="v2")


def test_a_model_without_safetensors(cached):
    (cached / "model.safetensors").unlink()
    assert describe("someone/merged").num_classes == 5
    with pytest.raises(
        FileNotFoundError, match=r"someone/merged on the Hugging Face Hub has no model\.safetensors; pick"
    ):
        load("someone/merged")
    (cached / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"someone/merged on the Hugging Face Hub has no config\.json"):
        describe("someone/merged")


def answer(status: int) -> Any:
    """What is asked of a response by the errors of huggingface_hub."""
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: errors.RepositoryNotFoundError("404", response=answer(404)),
            "Hub has no model of that name, or a priv",
        ),
        (
            lambda: errors.GatedRepoError("403", response=answer(403)),
            "gates the model of that name: accept its terms",
        ),
        (lambda: errors.RevisionNotFoundError("404", response=answer(404)), "but not its revision 'v9'"),
    ],
)
def test_what_the_hub_answers(error, message, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error()

    monkeypatch.setattr("patchmerger.hub.folders.snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match=message):
        load("some/one@v9")


@pytest.mark.parametrize("read", [load, describe])
def test_only_what_is_needed_is_downloaded(cached, read, monkeypatch):
    asked = []

    def download(name: str, **arguments: Any) -> str:
        asked.append((name, arguments["revision"], *arguments["allow_patterns"]))
        return str(cached)

    monkeypatch.setattr("patchmerger.hub.folders.snapshot_download", download)
    read("someone/merged@v2")
    configs = ("config.json", "preprocessor_config.json")
    weights = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
    assert asked == [("someone/merged", "v2", *configs, *(weights if read is load else ()))]
