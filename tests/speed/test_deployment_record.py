"""Interrupted benchmarks of deployed models: what was done is kept, and the same call goes on with the rest."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import patchmerger
from conftest import make_vit
from exports.conftest import PREPROCESSING, tiny
from patchmerger.cli import main
from patchmerger.exports import ExportSettings, export
from patchmerger.reports.deployment import report
from patchmerger.speed import BenchSettings, bench, deployed_forms, deployment

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = BenchSettings(
    formats=["eager", "torch"], precision="float32", batch_size=[1, 2], rounds=4, warmup=1, images=4
)  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return patchmerger.save(tiny(), tmp_path / "vit", preprocessing=PREPROCESSING, model_args={"depth": 2})


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are made."""
    made: list[Path] = []

    def noted(model: Any, out: Path, *args: Any, **options: Any) -> Any:
        made.append(out)
        return export(model, out, *args, **options)

    monkeypatch.setattr(deployed_forms, "export", noted)
    return made


def interrupted(name: str, at: int, run: Any) -> Any:
    """Run with Ctrl-C at the given call of a function of the benchmark."""
    original, calls = getattr(deployment, name), []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployment, name, counted)
        return run()


def hidden(out: Path) -> list[Path]:
    return [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_rounds_rows_and_files_that_are_done_are_not_done_again(saved, exports, tmp_path, monkeypatch, capsys):
    out = tmp_path / "deploy.json"
    monkeypatch.setattr(deployment, "_ROUND", 0.0)  # a call of each form in a round
    first = interrupted("_seconds", 4 + 4 * 4 + 4 + 2 * 4 + 3, lambda: bench(saved, SETTINGS, out=out))
    assert first == json.loads(out.read_text())
    assert not first["finished"]
    assert [row["batch_size"] for row in first["rows"]] == [1]
    assert first["unfinished"]["batch_size"] == 2
    kept = first["unfinished"]["rounds"]
    assert [len(rounds) for rounds in kept.values()] == [2] * 4
    assert report(first, tmp_path / "picture.png", resumable=True) == 130
    assert "unfinished: 1 batch sizes measured; the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "picture.png").exists()
    assert len(exports) == 2

    second = bench(saved, SETTINGS, out=out)
    assert second == json.loads(out.read_text())
    assert second["finished"]
    assert "unfinished" not in second
    assert len(exports) == 2
    assert second["rows"][0] == first["rows"][0]
    assert (second["forms"], second["peak_rates"]) == (first["forms"], first["peak_rates"])
    for timing, rounds in zip(second["rows"][1]["timings"], kept.values(), strict=True):
        assert timing["round_seconds"][:2] == [turns[0] for turns in rounds]
        assert len(timing["round_seconds"]) == timing["calls"] == 4
    assert hidden(out) == []
    with pytest.raises(FileExistsError, match="exists already: take another name"):
        bench(saved, SETTINGS, out=out)


def test_an_interrupted_command_names_the_hidden_folder_that_a_finished_one_removes(saved, tmp_path, capsys):
    out = tmp_path / "deploy.json"
    words = ["bench", str(saved), "--formats", "[eager]", "--precision", "float32", "--batch_size", "[1, 2]"]
    words += ["--rounds", "1", "--warmup", "1", "--out", str(out)]
    assert interrupted("_measure", 2, lambda: main(words)) == 130
    [kept] = hidden(out)
    assert f"the same command goes on; files that were made are kept in {kept} until" in capsys.readouterr().out
    assert main(words) == 0
    assert hidden(out) == []
    assert "kept in" not in capsys.readouterr().out


def test_an_interrupt_before_anything_is_recorded_leaves_nothing(saved, tmp_path):
    out = tmp_path / "new" / "deploy.json"
    words = ["bench", str(saved), "--formats", "[eager]", "--precision", "float32", "--out", str(out)]
    assert interrupted("_made", 1, lambda: main(words)) == 130
    assert list(out.parent.iterdir()) == []


def test_forms_that_were_made_before_anything_was_measured_are_kept(saved, exports, tmp_path):
    out = tmp_path / "deploy.json"
    first = interrupted("_made", 4, lambda: bench(saved, SETTINGS, out=out))
    assert [form["key"]["merged"] for form in first["forms"]] == [False, True, False]
    second = bench(saved, SETTINGS, out=out)
    assert len(exports) == 2
    assert second["finished"]
    assert second["forms"][:3] == first["forms"]


def test_without_a_file_an_interrupt_keeps_whole_rows(saved, tmp_path):
    settings = BenchSettings(formats=["eager"], precision="float32", batch_size=[1, 2], rounds=1, warmup=1)
    found = interrupted("_measure", 2, lambda: bench(saved, settings))
    assert [row["batch_size"] for row in found["rows"]] == [1]
    with pytest.raises(KeyboardInterrupt):
        interrupted("_measure", 1, lambda: bench(saved, settings))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("settings", FileExistsError, r"is unfinished and has other settings \(rounds: 1 there, 2 asked for\)"),
        ("data", FileExistsError, r"is unfinished and has other settings \(data\."),
        ("weights", ValueError, r"models \(.*vit\) has changed since it was begun: take another name"),
        ("machine", ValueError, r"was measured elsewhere \(cpu_count: 99 there, .* here\)"),
        ("libraries", ValueError, r"was measured elsewhere \(onnxruntime: 0.1 there"),
        ("form", ValueError, r"was measured with .*vit merged, eager, float32, which cannot be made now \(no memory\)"),
    ],
)
def test_nothing_is_mixed_with_what_was_measured_otherwise(change, error, message, saved, tmp_path, monkeypatch):
    out = tmp_path / "deploy.json"
    settings = {"formats": ["eager"], "precision": "float32", "batch_size": [1, 2], "rounds": 1, "warmup": 1}
    interrupted("_measure", 2, lambda: bench(saved, BenchSettings(**settings), out=out))
    before = out.read_text()
    if change in ("machine", "libraries"):
        content = json.loads(before)
        content["environment"] |= {"cpu_count": 99} if change == "machine" else {"onnxruntime": "0.1"}
        out.write_text(json.dumps(content))
    elif change == "weights":
        model = tiny()
        with torch.no_grad():
            model.head.bias.add_(1)
        patchmerger.save(model, saved, preprocessing=PREPROCESSING, model_args={"depth": 2}, overwrite=True)
    elif change == "form":
        original = deployed_forms._in_torch

        def refuse(model: Any, key: Any) -> Any:
            if key.merged:
                raise RuntimeError("no memory")
            return original(model, key)

        monkeypatch.setattr(deployed_forms, "_in_torch", refuse)
    elif change == "settings":
        settings["rounds"] = 2
    kept = out.read_text()
    with pytest.raises(error, match=message):
        bench(saved, BenchSettings(**settings), out=out, data="digits" if change == "data" else None)
    assert out.read_text() == kept


def test_a_call_that_cannot_work_leaves_nothing_and_an_old_file_stays_until_a_round_is_measured(saved, tmp_path):
    folder = tmp_path / "new"
    model = make_vit(depth=2, embed_dim=16, img_size=48)
    other = export(model, folder / "other.pt2", ExportSettings(format="torch")).path
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="models take images of 2 sizes"):
        bench([saved, other], SETTINGS, out=folder / "deploy.json")
    assert sorted(folder.iterdir()) == before
    old = folder / "old.json"
    old.write_text("{}")
    interrupted("_made", 2, lambda: bench(saved, SETTINGS, out=old, overwrite=True))
    assert old.read_text() == "{}"
    assert hidden(old) == []


def test_a_form_that_failed_before_anything_was_measured_is_tried_again(saved, exports, tmp_path, monkeypatch):
    out, original = tmp_path / "deploy.json", deployed_forms._in_torch

    def refuse(model: Any, key: Any) -> Any:
        if key.merged:
            raise RuntimeError("no memory")
        return original(model, key)

    with monkeypatch.context() as patch:
        patch.setattr(deployed_forms, "_in_torch", refuse)
        first = interrupted("_measure", 1, lambda: bench(saved, SETTINGS, out=out))
    assert [bool(form["error"]) for form in first["forms"]] == [False, True, False, False]
    second = bench(saved, SETTINGS, out=out)
    assert [bool(form["error"]) for form in second["forms"]] == [False] * 4
    assert [form["key"] for form in second["forms"]] == [form["key"] for form in first["forms"]]
