"""Tokens on disk: what was written is read, interrupted or not; damage, other tokens and too little room are named."""

import shutil

import pytest
import torch

from patchmerger.acceleration.kept_tokens import KeptShape, KeptTokens, images_that_fit

SHAPE = KeptShape(tokens=5, dim=8, classes=3, features=8, dtype="float32")


def parts(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=generator) for shape, _ in SHAPE.parts.values())


def batches(whole, first=0, size=4):
    return (tuple(part[start : start + size] for part in whole) for start in range(first, len(whole[0]), size))


def test_what_is_written_is_read(tmp_path):
    whole = parts(10)
    kept = KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "a"})
    assert list(kept.write(batches(whole))) == [4, 4, 2]
    again = KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "a"})
    assert again.done == 10
    for ours, expected in zip(again.read([7, 0, 9]), whole, strict=True):
        assert torch.equal(ours, expected[[7, 0, 9]])
    again.remove()
    assert not (tmp_path / "kept").exists()


def test_bfloat16_takes_half_and_rounds(tmp_path):
    shape = KeptShape(5, 8, 3, 8)
    assert shape.bytes == SHAPE.bytes - 5 * 8 * 2
    kept, whole = KeptTokens(tmp_path, shape, 10, None), parts(10)
    list(kept.write(batches(whole)))
    tokens, scores, _ = kept.read(range(10))
    assert torch.equal(tokens, whole[0].bfloat16())
    assert torch.equal(scores, whole[1])


def test_interrupted_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("patchmerger.acceleration.kept_tokens._SYNC_EVERY", 4 * SHAPE.bytes)
    whole = parts(10)
    kept = KeptTokens(tmp_path, SHAPE, 10, None)
    writing = kept.write(batches(whole, size=2))
    for _ in range(3):
        next(writing)
    writing.close()
    again = KeptTokens(tmp_path, SHAPE, 10, None)
    assert again.done == 4  # the third batch was not in the index yet
    list(again.write(batches(whole, first=4)))
    assert all(map(torch.equal, KeptTokens(tmp_path, SHAPE, 10, None).read(range(10)), whole))


def test_killed_before_the_first_entry_it_begins_again(tmp_path):
    whole = parts(10)
    writing = KeptTokens(tmp_path, SHAPE, 10, None).write(batches(whole))
    next(writing)  # what was written is in no index yet
    again = KeptTokens(tmp_path, SHAPE, 10, None)
    assert again.done == 0
    list(again.write(batches(whole)))
    assert all(map(torch.equal, again.read(range(10)), whole))


def test_other_or_damaged_tokens_are_named(tmp_path):
    kept = KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "a"})
    list(kept.write(batches(parts(10))))
    with pytest.raises(ValueError, match=r"kept holds kept tokens of another model, .*delete that folder"):
        KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "b"})
    file = tmp_path / "kept" / "tokens"
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokens is damaged: delete the folder"):
        KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "a"})
    file.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"tokens is damaged"):
        KeptTokens(tmp_path / "kept", SHAPE, 10, {"model": "a"})
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "photo.png").write_bytes(b"1")
    with pytest.raises(ValueError, match="holds no kept tokens"):
        KeptTokens(tmp_path / "own", SHAPE, 10, None)


def test_too_little_room_is_said_with_the_numbers(tmp_path, monkeypatch):
    assert images_that_fit(SHAPE, 1000, tmp_path / "none" / "yet", 1.0) == (1000, None)
    gib = 100 * SHAPE.bytes / 2**30
    count, remark = images_that_fit(SHAPE, 1000, tmp_path, gib)
    assert count == 100
    assert "1,000 images need" in remark
    assert "100 fit into recovery.cache_gib" in remark
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200 * SHAPE.bytes))
    count, remark = images_that_fit(SHAPE, 1000, tmp_path, 1.0)
    assert count == 180
    assert "free there" in remark
    assert images_that_fit(SHAPE, 1000, tmp_path, 1.0, beside=100)[0] == 80
    assert images_that_fit(SHAPE, 1000, tmp_path, 1.0, beside=1000)[0] == 0
    count, remark = images_that_fit(SHAPE, 1000, tmp_path, gib, share=0.25)
    assert count == 25
    assert "25 fit into a share of 0.25 of recovery.cache_gib" in remark
