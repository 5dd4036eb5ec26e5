"""Benchmarks: rows, errors, interrupts, the file, the tables and the picture."""

import json
import os
import re
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from unittest.mock import patch

import pytest
import torch

from patchmerger.cli import main
from patchmerger.reports.bench import report
from patchmerger.reports.pictures.bench import draw
from patchmerger.speed import suite
from patchmerger.speed.settings import BenchSettings
from patchmerger.speed.suite import bench

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = BenchSettings(
    num_tokens=4, batch_size=2, rounds=3, warmup=1, device="cpu", precision="float32", mode="inference"
)  # fmt: skip


def timing(row, name="merged"):
    return next(t for t in row["measurement"]["timings"] if t["name"] == name)


def shown(results, width=120):
    with patch.dict(os.environ, COLUMNS=str(width)), redirect_stdout(StringIO()) as out:
        report(results, None)
    return out.getvalue()


def test_a_row_for_each_of_the_grid(tiny_models, tmp_path):
    out = tmp_path / "new" / "speed.json"
    grid = replace(QUICK, batch_size=1, precision=["float32", "bf16"], rounds=1)
    results = bench(["some", "other"], grid, out=out, command="patchmerger bench some other")
    assert results == json.loads(out.read_text())
    assert results["finished"]
    assert results["command"] == "patchmerger bench some other"
    keys = [row["key"] for row in results["rows"]]
    assert [key["model"] for key in keys] == ["some"] * 2 + ["other"] * 2
    assert len({json.dumps(key) for key in keys}) == 4
    for row in results["rows"]:
        merged = timing(row)
        assert row["error"] is None
        assert (row["num_tokens"], row["after"]) == ([4], [2])
        assert merged["of_predicted"] == merged["speedup"] / merged["predicted_speedup"]
        assert merged["of_roofline"] == merged["speedup"] / merged["roofline_speedup"]
        assert merged["uncertain"] == "only 1 rounds"
        assert row["peak_rates"]["precision"] == row["key"]["precision"] == row["measurement"]["precision"]
    text = shown(results)
    assert text.count("4 tokens after block 2: inference, bf16, eager, cpu") == 2
    assert "medians of 1 rounds after 1 warm-up steps, interleaved" in text
    assert "peak rates of a device, 1 threads: 1 GFLOPs/s in bf16, 1.0 GB/s" in text
    assert "uncertain: some on cpu, inference, batch of 1, float32: only 1 rounds" in text
    assert max(len(line) for line in shown(results, width=80).splitlines() if line.startswith(" ")) <= 80
    picture = tmp_path / "speed.png"
    draw(results, picture)
    assert picture.stat().st_size > 10_000
    with pytest.raises(FileExistsError, match=re.escape(f"out ({out}) exists already")):
        bench("some", QUICK, out=out)
    again = bench("some", QUICK, out=out, overwrite=True)
    assert len(again["rows"]) == len(json.loads(out.read_text())["rows"]) == 1


def test_training_steps_beside_inference(tiny_models):
    inference, training = bench("some", replace(QUICK, mode="both"))["rows"]
    assert [row["key"]["training"] for row in (inference, training)] == [False, True]
    assert timing(training)["activation_memory"] < timing(training, "plain")["activation_memory"]
    assert timing(inference)["peak_memory"] < timing(training)["peak_memory"]


def test_against_vit_pytorch_and_part_by_part(tiny_models):
    pytest.importorskip("vit_pytorch")
    results = bench("some", replace(QUICK, against="vit-pytorch", profile=True))
    [row] = results["rows"]
    middle, (low, high) = row["merged_against"]["vit-pytorch"]
    pairs = zip(timing(row, "vit-pytorch")["round_seconds"], timing(row)["round_seconds"], strict=True)
    assert middle == sorted(theirs / ours for theirs, ours in pairs)[1]
    assert low <= middle <= high
    [profile] = results["profiles"]
    assert [part["name"] for part in profile["models"]["merged"]][2] == "merger after 2"
    text = shown(results, width=160)
    assert "× as fast as plain; merged is " in text
    assert "some, parts of a forward pass, batch of 2, float32, eager, cpu" in text
    assert "merger after 2" in text


def test_a_row_without_memory_says_so_and_the_others_go_on(tiny_models, monkeypatch, capsys):
    real = suite.measure

    def short_of_memory(models, timing, **options):
        if timing.batch_size == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has no more")
        if timing.batch_size == 65:
            raise RuntimeError("this kernel is not there\nsecond line")
        return real(models, timing, **options)

    monkeypatch.setattr(suite, "measure", short_of_memory)
    results = bench("some", replace(QUICK, batch_size=[64, 65, 2]))
    memory, *others = (row["error"] for row in results["rows"])
    assert re.match(r"out of memory \(a single tensor of 9.00 GiB .*: a smaller batch_size", memory)
    assert others == ["this kernel is not there", None]
    timing(results["rows"][2])["speedup"] = 0.8
    assert report(results, None) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not measured: some on cpu, inference, batch of 64, float32: out of memory" in printed
    assert "slower with the merger: some on cpu, inference, batch of 2, float32: 0.80×" in printed
    assert report({**results, "rows": results["rows"][:2]}, None) == 2
    with pytest.raises(ValueError, match="no row was measured"):
        draw({**results, "rows": results["rows"][:2]}, None)


def test_an_interrupted_benchmark_goes_on(tiny_models, tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    grid = replace(QUICK, batch_size=[1, 2, 3], rounds=4)
    real, measured = suite.measure, []

    def interrupted(models, timing, *, progress, **options):
        measured.append(timing.batch_size)

        def press(done, total):
            progress(done, total)
            if len(measured) == 2 and done == 2:
                raise KeyboardInterrupt

        return real(models, timing, progress=press, **options)

    monkeypatch.setattr(suite, "measure", interrupted)
    first = bench("some", grid, out=out)
    assert not first["finished"]
    assert [row["key"]["batch_size"] for row in first["rows"]] == [1]
    assert report(first, None, resumable=True) == 130
    assert "unfinished: 1 rows measured; the same command goes on with the others" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=re.escape("other settings (rounds: 4 there, 5 asked for)")):
        bench("some", replace(grid, rounds=5), out=out)
    second = bench("some", grid, out=out)
    assert measured == [1, 2, 2, 3]
    assert second["finished"]
    assert [row["key"]["batch_size"] for row in second["rows"]] == [1, 2, 3]
    assert second["rows"][0] == first["rows"][0]


def test_an_interrupt_within_a_row_keeps_its_rounds(tiny_models, tmp_path, monkeypatch):
    out, real = tmp_path / "speed.json", suite.measure

    def interrupted(*args, **options):
        return replace(real(*args, **options), interrupted=True)

    monkeypatch.setattr(suite, "measure", interrupted)
    results = bench("some", QUICK, out=out)
    assert not results["finished"]
    assert results["rows"][0]["interrupted"]
    monkeypatch.setattr(suite, "measure", real)
    again = bench("some", QUICK, out=out)
    assert again["finished"]
    assert [row["interrupted"] for row in again["rows"]] == [False]


def test_a_record_from_elsewhere_is_not_mixed(tiny_models, tmp_path):
    out = tmp_path / "speed.json"
    results = bench("some", replace(QUICK, rounds=1), out=out)
    results["finished"] = False
    results["environment"]["cpu"] = "another"
    out.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="unfinished and was measured elsewhere"):
        bench("some", replace(QUICK, rounds=1), out=out)
    out.write_text("no JSON")
    with pytest.raises(FileExistsError, match="is no benchmark"):
        bench("some", QUICK, out=out)
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        bench("some", QUICK, out=tmp_path)


def test_a_model_that_has_changed_is_not_mixed(tiny_models, tmp_path):
    out = tmp_path / "speed.json"
    results = bench("some", replace(QUICK, rounds=1), out=out)
    out.write_text(json.dumps({**results, "finished": False, "rows": [], "models": {"some": "another"}}))
    with pytest.raises(ValueError, match=r"models \(some\) has changed since it was begun: take another name"):
        bench("some", replace(QUICK, rounds=1), out=out)


@pytest.mark.parametrize(
    ("models", "change", "message"),
    [
        ([], {}, "models ([]) must be different ones, and at least one"),
        (["a", "a"], {}, "models (['a', 'a']) must be different ones"),
        ("resnet18", {}, "ResNet cannot take a merger"),
        ("vit_smal_patch16_224", {}, "did you mean vit_small"),
        ("vit_tiny_patch16_224", {"device": ["cpu", "cuda:99"]}, "device ('cuda:99') is not there"),
        ("vit_tiny_patch16_224", {"image_size": 100}, "image_size (100, 100) does not divide by the patch size"),
        ("vit_tiny_patch16_224", {"after": 12}, "after (12) must be a block from 1 to 11"),
    ],
)
def test_it_refuses_before_it_measures(models, change, message, monkeypatch):
    monkeypatch.setattr(suite, "measure", lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(ValueError, match=re.escape(message)):
        bench(models, BenchSettings(**{"device": "cpu", **change}))


def test_from_the_shell(tiny_models, tmp_path, capsys):
    options = ["--batch_size", "1", "--rounds", "1", "--warmup", "1", "--mode", "inference", "--num_tokens", "4"]
    options += ["--precision", "float32", "--device", "cpu", "--picture", str(tmp_path / "speed.png")]
    assert main(["bench", "some", *options]) == 0
    printed = capsys.readouterr().out
    assert "some, 4 tokens after block 2: inference" in printed
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert main(["bench", "some", *options]) == 2
    assert "picture (" in capsys.readouterr().err
    assert main(["bench", "some", *options[:-1], str(tmp_path / "new.png"), "--out", str(tmp_path / "new.png")]) == 2
    assert "is the file of the result" in capsys.readouterr().err
