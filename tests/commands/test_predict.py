"""``patchmerger predict``: table, CSV and JSON lines, and an exit status that says whether images were passed over."""

import csv
import json

import pytest
from PIL import Image

import patchmerger.reports.predict
from conftest import make_vit
from patchmerger.cli import main
from patchmerger.data import Preprocessing

NAMES = ["[red]", "b,c", "d", "e", "f"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A model in ./model and three images in ./photos."""
    monkeypatch.chdir(tmp_path)
    patchmerger.save(make_vit(), "model", preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3), class_names=NAMES)
    (tmp_path / "photos").mkdir()
    for place, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 40), colour).save(f"photos/{place}.png")
    return tmp_path


def test_a_table_for_people(photos, capsys):
    assert main(["predict", "model", "photos", "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert all(f"photos/{place}.png" in printed for place in range(3))
    assert sum(name in printed for name in NAMES) >= 2


def test_csv_and_json_lines_say_the_same(photos, capsys):
    assert main(["predict", "model", "photos", "--format", "csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert main(["predict", "model", "photos", "--out", "found/all.jsonl", "--top", "2"]) == 0
    assert capsys.readouterr().out == ""
    lines = [json.loads(line) for line in (photos / "found" / "all.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [line["image"] for line in lines] == [f"photos/{i}.png" for i in range(3)]
    for row, line in zip(rows, lines, strict=True):
        assert [row["class_1"], row["class_2"]] == [each["name"] for each in line["classes"]]
        assert float(row["probability_1"]) == line["classes"][0]["probability"]
        assert NAMES[line["classes"][0]["index"]] == row["class_1"]


def test_features_as_rows(photos, capsys):
    assert main(["predict", "model", "photos", "--features", "true", "--shard", "2/3"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["image"] == "photos/1.png"
    assert len(row) == 1 + 32
    assert main(["predict", "model", "photos/1.png", "--features", "true", "--format", "jsonl"]) == 0
    features = json.loads(capsys.readouterr().out)["features"]
    assert features == [float(row[f"feature_{place}"]) for place in range(32)]


def test_what_is_no_image_is_named_and_the_exit_status_says_so(photos, capsys):
    (photos / "photos" / "1.png").write_text("no image")
    assert main(["predict", "model", "photos", "--format", "jsonl"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "photos/1.png: not an image" in printed.err
    assert "1 of 3 images could not be read" in printed.err


def test_where_class_names_are_from_is_said(photos, capsys):
    patchmerger.save(make_vit(), "unnamed", preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3))
    assert main(["predict", "unnamed", "photos/0.png"]) == 0
    assert "numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--out", "there.csv"], "out (there.csv) exists"),
        (["--out", "found.txt"], "out (found.txt) ends neither in .csv nor in .jsonl"),
        (["--format", "table", "--features", "true"], 'format ("table")'),
        (["--shard", "4/3"], "shard ('4/3')"),
        (["--shard", "half"], "shard ('half')"),
        (["--top", "0"], "top (0)"),
    ],
)
def test_bad_options_are_one_line_before_any_work(photos, options, facts, capsys):
    (photos / "there.csv").touch()
    assert main(["predict", "no/such/model", "photos", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchmerger predict: ")
    assert facts in line


def test_nothing_is_left_of_a_file_that_was_not_finished(photos, monkeypatch, capsys):
    def stop(*_, **__):
        raise OSError("stopped")

    monkeypatch.setattr("patchmerger.reports.predict.json.dumps", stop)
    assert main(["predict", "model", "photos", "--out", "found.jsonl"]) == 2
    assert "stopped" in capsys.readouterr().err
    assert not list(photos.glob("*found*"))


def test_a_file_that_another_process_wrote_meanwhile_stays(photos, monkeypatch, capsys):
    write = patchmerger.reports.predict.write_json_lines

    def late(file, predictions):
        write(file, predictions)
        (photos / "found.jsonl").write_text("of another shard")

    monkeypatch.setattr("patchmerger.reports.predict.write_json_lines", late)
    assert main(["predict", "model", "photos", "--out", "found.jsonl"]) == 2
    assert "found.jsonl" in capsys.readouterr().err
    assert (photos / "found.jsonl").read_text() == "of another shard"
    assert main(["predict", "model", "photos", "--out", "found.jsonl", "--overwrite", "true"]) == 0
    assert main(["predict", "model", "photos", "--out", "found.jsonl"]) == 2
