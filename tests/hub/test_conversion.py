"""A checkpoint of PyTorch becomes a folder; no code in it is run; what the messages advise works."""

import argparse
import os
import pickle
import shlex
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from hub.test_checkpoints import NAME, SIZE, assert_same, make
from patchmerger.cli import main
from patchmerger.data import Preprocessing
from patchmerger.hub import convert, describe, load
from patchmerger.models import find_model
from patchmerger.runs.tensors import write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def timms(tmp_path):
    """A checkpoint as timm's train.py writes it."""
    path = tmp_path / "model_best.pth.tar"
    args = argparse.Namespace(lr=1.0, model_kwargs=SIZE, output=None)
    torch.save({"epoch": 3, "arch": NAME, "state_dict": make().state_dict(), "args": args, "metric": 81.2}, path)
    return path


def test_a_checkpoint_of_timm_s_train_py(timms, tmp_path):
    with pytest.warns(UserWarning, match="took the weights under 'state_dict'"):
        folder = convert(timms, class_names=list("abcde"), preprocessing=Preprocessing((0.4,) * 3, (0.3,) * 3))
    assert folder == tmp_path / "model_best"
    assert_same(load(folder), make())
    assert describe(folder).class_names == tuple("abcde")
    assert describe(folder).preprocessing.mean == (0.4,) * 3


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", "teacher", "anything"])
def test_nested_weights(key, tmp_path):
    torch.save({key: make().state_dict(), "step": 3, "optimizer": {"state": {}}}, tmp_path / "own.pt")
    with pytest.warns(UserWarning, match=f"under '{key}'"):
        assert_same(load(convert(tmp_path / "own.pt", architecture=NAME, model_args=SIZE)), make())


@pytest.mark.parametrize(
    "beside",
    [np.float64(81.2), np.int64(3), Path("/runs"), defaultdict(list), argparse.Namespace(out=Path("/runs"))],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_beside_the_weights(beside, tmp_path):
    torch.save({"state_dict": make().state_dict(), "beside": beside}, tmp_path / "own.pth")
    with pytest.warns(UserWarning, match="under 'state_dict'"):
        assert_same(load(convert(tmp_path / "own.pth", architecture=NAME, model_args=SIZE)), make())


def test_several_weights_are_chosen_by_key(tmp_path):
    ema = {name: tensor + 1 for name, tensor in make().state_dict().items()}
    torch.save({"model": make().state_dict(), "model_ema": ema}, tmp_path / "own.pth")
    with pytest.raises(ValueError, match="several weights: name one by key, model or model_ema"):
        convert(tmp_path / "own.pth", architecture=NAME, model_args=SIZE)
    with pytest.raises(ValueError, match=r"key \('teacher'\) is none of .*model, model_ema"):
        convert(tmp_path / "own.pth", architecture=NAME, model_args=SIZE, key="teacher")
    folder = convert(tmp_path / "own.pth", architecture=NAME, model_args=SIZE, key="model_ema")
    assert torch.equal(load(folder).head.bias, make().head.bias + 1)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bare_state_dict_and_a_safetensors_file(tmp_path, legacy):
    torch.save(make().state_dict(), tmp_path / "own.bin", _use_new_zipfile_serialization=not legacy)
    assert_same(load(convert(tmp_path / "own.bin", tmp_path / "a", architecture=NAME, model_args=SIZE)), make())
    write_tensors(tmp_path / "own.safetensors", make().state_dict())
    assert_same(load(convert(tmp_path / "own.safetensors", tmp_path / "b", architecture=NAME, model_args=SIZE)), make())


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_no_code_is_run(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": make().state_dict(), "args": Evil()}
    if form == "pickle":
        Path("own.pth").write_bytes(pickle.dumps({"args": Evil()}))
    else:
        torch.save(content, "own.pth", _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match=r"own\.pth (holds posix\.mkdir, which could run code|is damaged)"):
        convert("own.pth", architecture=NAME, model_args=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["own.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged, or no checkpoint"),
        (b"\x80\x04", "is damaged, or no checkpoint"),
        (b"PK\x03\x04 and no more", "is damaged, or no checkpoint"),
        ([1, 2], "holds a list, not a state dict"),
        ({"a": 1}, r"holds no state dict \(it holds a\)"),
        (OrderedDict(), "holds no state dict"),
        ({"epoch": 3, "state_dict": {"x": 1}}, "holds no state dict"),
    ],
)
def test_files_that_hold_no_weights(content, message, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "own.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "own.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "own.pth", architecture=NAME)


def test_what_is_asked_for_wrongly(timms, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint \(.*none\.pth\) does not exist"):
        convert(tmp_path / "none.pth")
    torch.save(make().state_dict(), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="architecture must be given"):
        convert(tmp_path / "own.pth")
    with pytest.raises(ValueError, match="did you mean"):
        convert(tmp_path / "own.pth", architecture="vit_tiny_patch61_224")
    (tmp_path / "model_best").mkdir()
    (tmp_path / "model_best" / "notes").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        convert(timms)


def advised(error, tmp_path):
    """The command line in a message, with its placeholders filled in."""
    line = str(error).split("patchmerger ", 1)[1].replace("NAME", NAME).replace("FOLDER", str(tmp_path / "converted"))
    return shlex.split(line)


@pytest.mark.filterwarnings("ignore:.*took the weights under")
@pytest.mark.parametrize("take", [load, find_model, lambda path: find_model(path, architecture=NAME)])
def test_the_advice_for_a_pickle_works(take, timms, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"is a pickle.*patchmerger convert .*--out FOLDER") as caught:
        take(str(timms))
    assert main(advised(caught.value, tmp_path)) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "converted")
    assert_same(load(tmp_path / "converted"), make())


def test_the_advice_for_weights_alone_works(tmp_path):
    model = timm.create_model(NAME, num_classes=3, depth=1).eval()
    write_tensors(tmp_path / "own.safetensors", model.state_dict())
    with pytest.raises(ValueError, match=r"holds weights alone: patchmerger convert") as caught:
        load(tmp_path / "own.safetensors")
    assert main([*advised(caught.value, tmp_path), "--model_args", "{depth: 1}"]) == 0
    assert load(tmp_path / "converted").num_classes == 3
