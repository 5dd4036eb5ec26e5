import json
import re
import shlex
from dataclasses import replace

import pytest
import torch

from patchmerger.cli import main, read_command
from patchmerger.reports.speed import show_speed, speed_text
from patchmerger.speed import rows
from patchmerger.speed.suite import bench

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"num_tokens": 4, "batch_size": 2, "rounds": 3, "warmup": 1, "device": "cpu", "precision": "float32"}


def timing(row, name="merged"):
    return next(t for t in row["measurement"]["timings"] if t["name"] == name)


def test_a_row_for_each_of_the_grid(tiny_models, tmp_path):
    out, picture = tmp_path / "new" / "speed.json", tmp_path / "new" / "speed.png"
    grid = {**QUICK, "batch_size": [1, 2], "precision": ["float32", "bf16"]}
    results = bench(["some", "other"], **{**grid, "rounds": 1}, mode="inference", out=out, picture=picture)
    assert results == json.loads(out.read_text())
    assert results["finished"]
    assert picture.stat().st_size > 10_000
    keys = [row["key"] for row in results["rows"]]
    assert [key["model"] for key in keys] == ["some"] * 4 + ["other"] * 4
    assert len({json.dumps(key) for key in keys}) == 8
    for row in results["rows"]:
        merged = timing(row)
        assert row["error"] is None
        assert (row["num_tokens"], row["after"]) == ([4], [2])
        assert merged["of_predicted"] == merged["speedup"] / merged["predicted_speedup"]
        assert merged["of_roofline"] == merged["speedup"] / merged["roofline_speedup"]
        assert row["ceilings"]["precision"] == row["key"]["precision"] == row["measurement"]["precision"]
    text = speed_text(results)
    assert text.count("4 tokens after block 2: inference") == 2
    assert "medians of 1 rounds after 1 untimed steps, models in turn" in text
    assert "ceilings of a device, 1 threads: 1 GFLOPs/s in bf16, 1.0 GB/s" in text
    words = shlex.split(results["command"])
    assert words[:4] == ["patchmerger", "bench", "some", "other"]
    options = read_command("bench", words[2:])
    assert options.models == ["some", "other"]
    assert options.batch_size == [1, 2]
    assert options.precision == ["float32", "bf16"]
    with pytest.raises(FileExistsError, match=re.escape(f"out ({out}) exists already")):
        bench("some", **QUICK, out=out)
    with pytest.raises(FileExistsError, match=re.escape(f"picture ({picture}) exists already")):
        bench("some", **QUICK, picture=picture)
    again = bench("some", **QUICK, mode="inference", out=out, overwrite=True)
    assert len(again["rows"]) == len(json.loads(out.read_text())["rows"]) == 1


def test_training_steps_beside_inference(tiny_models):
    inference, training = bench("some", **QUICK)["rows"]
    assert [row["key"]["training"] for row in (inference, training)] == [False, True]
    assert timing(training)["activation_memory"] < timing(training, "plain")["activation_memory"]
    assert timing(inference)["peak_memory"] < timing(training)["peak_memory"]


def test_against_vit_pytorch_and_stage_by_stage(tiny_models):
    pytest.importorskip("vit_pytorch")
    results = bench("some", **QUICK, mode="inference", against="vit-pytorch", profile=True)
    [row] = results["rows"]
    middle, (low, high) = row["merged_against"]["vit-pytorch"]
    pairs = zip(timing(row, "vit-pytorch")["round_seconds"], timing(row)["round_seconds"], strict=True)
    assert middle == sorted(theirs / ours for theirs, ours in pairs)[1]
    assert low <= middle <= high
    [profile] = results["profiles"]
    assert [stage["name"] for stage in profile["models"]["merged"]][2] == "merger after 2"
    text = speed_text(results)
    assert "merged against" in text
    assert "some, stages of a forward pass, batch of 2, float32, cpu" in text
    assert "merger after 2" in text


def test_a_row_without_memory_says_so_and_the_others_go_on(tiny_models, monkeypatch, capsys):
    real = rows.measure

    def short_of_memory(models, *, batch_size, **options):
        if batch_size == 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has no more")
        if batch_size == 65:
            raise RuntimeError("this kernel is not there\nsecond line")
        return real(models, batch_size=batch_size, **options)

    monkeypatch.setattr(rows, "measure", short_of_memory)
    results = bench("some", **{**QUICK, "batch_size": [64, 65, 2]}, mode="inference")
    assert [row["error"] for row in results["rows"]] == [
        "out of memory (a single tensor of 9.00 GiB found no place)", "this kernel is not there", None,
    ]  # fmt: skip
    assert show_speed(results) == 0
    printed = capsys.readouterr().out
    assert "not measured: some on cpu, inference, batch of 64, float32: out of memory" in printed
    assert show_speed({**results, "rows": results["rows"][:2]}) == 2


def test_a_model_that_is_slower_is_told(tiny_models, capsys):
    results = bench("some", **QUICK, mode="inference")
    timing(results["rows"][0])["speedup"] = 0.8
    assert show_speed(results) == 0
    assert "slower with the merger: some on cpu, inference, batch of 2, float32: 0.80×" in capsys.readouterr().out


def test_an_interrupted_benchmark_goes_on(tiny_models, tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.json"
    grid = {**QUICK, "batch_size": [1, 2, 3], "rounds": 5, "mode": "inference", "out": out}
    real, measured = rows.measure, []

    def interrupted(models, *, batch_size, progress, **options):
        measured.append(batch_size)

        def press(done, total):
            progress(done, total)
            if len(measured) == 2 and done == 2:
                raise KeyboardInterrupt

        return real(models, batch_size=batch_size, progress=press, **options)

    monkeypatch.setattr(rows, "measure", interrupted)
    first = bench("some", **grid)
    assert not first["finished"]
    assert [row["key"]["batch_size"] for row in first["rows"]] == [1]
    assert show_speed(first) == 130
    assert "unfinished: 1 rows measured; the same command goes on with the others" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=re.escape("other settings (rounds: 5 there, 4 asked for)")):
        bench("some", **{**grid, "rounds": 4})
    second = bench("some", **grid)
    assert measured == [1, 2, 2, 3]
    assert second["finished"]
    assert [row["key"]["batch_size"] for row in second["rows"]] == [1, 2, 3]
    assert second["rows"][0] == first["rows"][0]


def test_an_interrupt_within_a_row_keeps_its_rounds(tiny_models, tmp_path, monkeypatch):
    out, real = tmp_path / "speed.json", rows.measure
    grid = {**QUICK, "rounds": 9, "mode": "inference", "out": out}

    def interrupted(models, **options):
        return replace(real(models, **options), interrupted=True)

    monkeypatch.setattr(rows, "measure", interrupted)
    results = bench("some", **grid)
    assert not results["finished"]
    assert results["rows"][0]["interrupted"]
    monkeypatch.setattr(rows, "measure", real)
    again = bench("some", **grid)
    assert again["finished"]
    assert [row["interrupted"] for row in again["rows"]] == [False]


def test_a_record_from_elsewhere_is_not_mixed(tiny_models, tmp_path):
    out = tmp_path / "speed.json"
    results = bench("some", **QUICK, mode="inference", out=out)
    results["finished"] = False
    results["environment"]["cpu"] = "another"
    out.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="unfinished and was measured elsewhere"):
        bench("some", **QUICK, mode="inference", out=out)
    out.write_text("no JSON")
    with pytest.raises(FileExistsError, match="is no benchmark"):
        bench("some", **QUICK, mode="inference", out=out)
    with pytest.raises(ValueError, match="is a folder: name a file in it"):
        bench("some", **QUICK, mode="inference", out=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"models": ["a", "a"]}, "models (['a', 'a']) must be different ones"),
        ({"models": "resnet18"}, "ResNet cannot take a merger"),
        ({"models": "vit_smal_patch16_224"}, "did you mean vit_small"),
        ({"batch_size": 0}, "batch_size (0) must be at least 1"),
        ({"batch_size": []}, "batch_size ([]) must be different ones, and at least one"),
        ({"rounds": -1}, "rounds (-1) must be at least 1"),
        ({"mode": "fast"}, "mode ('fast') must be one of 'both', 'inference', 'training'"),
        ({"precision": ["float32", "tf32"]}, "precision ('tf32') must be one of"),
        ({"device": ["cpu", "cuda:99"]}, "device ('cuda:99') is not there"),
        ({"image_size": 100}, "image_size (100, 100) does not divide by the patch size (16, 16)"),
        ({"after": 12}, "after (12) must be a block from 1 to 11"),
    ],
)
def test_it_refuses_before_it_measures(change, message, monkeypatch):
    monkeypatch.setattr(rows, "measure", lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(ValueError, match=re.escape(message)):
        bench(**{"models": "vit_tiny_patch16_224", "device": "cpu", **change})


def test_from_the_shell(tiny_models, capsys):
    options = ["--batch_size", "[1, 2]", "--rounds", "3", "--warmup", "1", "--mode", "inference", "--num_tokens", "4"]
    assert main(["bench", "some", "other", *options, "--precision", "float32", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "some, 4 tokens after block 2: inference" in printed
    assert "other, 4 tokens after block 2: inference" in printed
