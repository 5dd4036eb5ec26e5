"""A model goes to the Hugging Face Hub as its folder, with a card where there is none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import patchmerger
from conftest import make_images, make_vit
from hub.helpers import make_torchvision
from patchmerger.hub import load, push_to_hub, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread")


class FakeHub:
    """Stands in for ``huggingface_hub.HfApi``: keeps what it is given in a folder."""

    def __init__(self, folder: Path, card: str | None = None) -> None:
        self.folder, self.card, self.calls = folder, card, []

    def __call__(self, **kwargs: Any) -> "FakeHub":
        self.calls.append(("HfApi", kwargs))
        return self

    def create_repo(self, name: str, **kwargs: Any) -> SimpleNamespace:
        self.calls.append(("create_repo", {"name": name, **kwargs}))
        return SimpleNamespace(repo_id=name)

    def file_exists(self, name: str, file: str, *, revision: str | None) -> bool:
        assert file == "README.md"
        return self.card is not None

    def upload_folder(self, *, folder_path: Path, **kwargs: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", kwargs))
        self.folder.mkdir()
        for path in Path(folder_path).iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())
        return SimpleNamespace(commit_url="https://huggingface.co/me/mine/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "uploaded")
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


def test_upload(hub):
    model = insert(make_vit(), 4)
    address = patchmerger.push_to_hub(model, "me/mine", private=True, token="secret", class_names=list("abcde"))
    assert address == "https://huggingface.co/me/mine/commit/1"
    assert sorted(path.name for path in hub.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert torch.equal(load(hub.folder)(make_images()), model(make_images()))
    assert hub.calls == [
        ("HfApi", {"token": "secret", "library_name": "patchmerger"}),
        ("create_repo", {"name": "me/mine", "private": True, "exist_ok": True}),
        (
            "upload_folder",
            {
                "repo_id": "me/mine",
                "revision": None,
                "create_pr": False,
                "commit_message": "Upload a model saved by patchmerger",
                "delete_patterns": ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
            },
        ),
    ]


def test_the_card(hub):
    push_to_hub(insert(make_torchvision(), (9, 4), after=(1, 3)), "me/mine")
    card = ModelCard.load(hub.folder / "README.md")
    assert card.data.library_name == "patchmerger"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["patchmerger", "torchvision", "vision"]
    assert "- after block 1, PatchMerger leaves 9 tokens\n- after block 3, PatchMerger leaves 4 tokens\n" in card.text
    assert 'patchmerger.load("me/mine")' in card.text


def test_the_card_of_a_plain_model(hub):
    push_to_hub(make_vit(num_classes=0), "me/mine")
    card = ModelCard.load(hub.folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-feature-extraction")
    assert "merged" not in card.text


def test_a_card_that_is_there_stays(hub):
    hub.card = "mine"
    push_to_hub(make_vit(), "me/mine", revision="try", create_pr=True, commit_message="New weights")
    assert not (hub.folder / "README.md").exists()
    _, arguments = hub.calls[-1]
    assert (arguments["revision"], arguments["create_pr"], arguments["commit_message"]) == ("try", True, "New weights")


@pytest.mark.parametrize(
    ("model", "name", "options", "message"),
    [
        (make_vit(), "mine", {}, r"name \('mine'\) must be 'user/name'"),
        (make_vit(), "me/mine@v2", {}, r"name \('me/mine@v2'\) must be 'user/name'; a revision goes into revision="),
        (make_vit(), "me/mine", {"overwrite": True}, "overwrite is for folders"),
        (make_vit(), "me/mine", {"class_names": ["a"]}, "class_names has 1 names, but the model has 5 classes"),
        (torch.nn.Linear(2, 2), "me/mine", {}, r"model \(Linear\) is not of timm"),
    ],
)
def test_nothing_is_made_on_the_hub_for_a_model_that_cannot_be_saved(hub, model, name, options, message):
    with pytest.raises(ValueError, match=message):
        push_to_hub(model, name, **options)
    assert all(call == "HfApi" for call, _ in hub.calls)


def test_the_folder_of_a_download_can_be_saved_again(hub, tmp_path):
    push_to_hub(insert(make_vit(), 4), "me/mine")
    save(load(hub.folder), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes()
