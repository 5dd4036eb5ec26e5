"""Tensors on disk: the same again, atomic, readable as the umask has it, damage named."""

import os
import stat

import pytest
import torch

from patchmerger.runs.tensors import read_tensors, write_tensors

TENSORS = {"a": torch.randn(2, 3).to(torch.bfloat16), "b": torch.arange(4)}


def test_tensors_come_back(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS | {"t": torch.randn(3, 4).T})
    again = read_tensors(tmp_path / "x.safetensors")
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    assert again["t"].shape == (4, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_the_mode_is_what_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "x.safetensors", TENSORS)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~umask


def test_a_failure_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x.safetensors", TENSORS)

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("patchmerger.runs.tensors.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        write_tensors(tmp_path / "x.safetensors", {})
    assert sorted(read_tensors(tmp_path / "x.safetensors")) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("content", [b"", b"12", b"\xff" * 100], ids=["empty", "short", "absurd header"])
def test_damage_is_named(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors is cut short or not a safetensors file .*copy it again"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="none"):
        read_tensors(tmp_path / "none.safetensors")
