import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import patchmerger
from conftest import make_vit
from exports.conftest import PREPROCESSING, tiny
from exports.test_quantisation import Pictures
from hosts.test_torchvision import make_plain as make_torchvision
from models.test_classifier import transformers_vit
from patchmerger import insert
from patchmerger.exports import ExportSettings, export
from patchmerger.reports.deployment import notes, report, tables
from patchmerger.speed import BenchSettings, bench, deployed_forms
from patchmerger.speed.deployed_forms import FormBuilder, FormKey, has_precision

QUICK: dict[str, Any] = {"batch_size": [1, 2], "rounds": 2, "warmup": 1, "images": 8}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "vit"
    return patchmerger.save(tiny(), folder, preprocessing=PREPROCESSING, model_args={"depth": 2})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tiny(), tmp_path_factory.mktemp("file") / "vit.pt2", ExportSettings(format="torch")).path


@pytest.fixture(scope="module")
def results(saved, file) -> dict[str, Any]:
    """A saved model in torch, and a file beside it."""
    settings = BenchSettings(formats=["eager"], precision=["float32", "int8"], **QUICK)
    out = file.parent / "results.json"
    found = bench([saved, file], settings, out=out, command="patchmerger bench …")
    assert json.loads(out.read_text()) == found
    return found


def test_plain_and_merged_and_files_are_interleaved_at_each_batch_size(results, saved, file):
    assert [row["batch_size"] for row in results["rows"]] == [1, 2]
    for row in results["rows"]:
        keys = [
            (t["key"]["model"], t["key"]["merged"], t["key"]["form"], t["key"]["precision"]) for t in row["timings"]
        ]
        assert keys == [
            ("vit.pt2", True, "torch", "float32"),
            (str(saved), False, "eager", "float32"),
            (str(saved), True, "eager", "float32"),
        ]
        for timing in row["timings"]:
            assert len(timing["round_seconds"]) == 2
            assert timing["calls"] >= 2
            assert timing["p95"] >= timing["median"] > 0
            expected = row["batch_size"] / np.median(timing["round_seconds"])
            assert timing["images_per_second"] == pytest.approx(expected)


def test_ratios_are_those_within_the_rounds(results):
    _, plain, merged = results["rows"][0]["timings"]
    ratios = [a / b for a, b in zip(plain["round_seconds"], merged["round_seconds"], strict=True)]
    assert merged["over_eager"][1] == pytest.approx(np.median(ratios))
    assert merged["over_plain"] == merged["over_eager"]
    assert plain["over_eager"] == [1, 1, 1]
    assert plain["over_plain"] is None
    assert merged["predicted"] > 1


def test_a_roofline_of_flops_and_memory_stands_beside_them(results):
    assert results["bandwidth"] > 1e8
    for row in results["rows"]:
        file, plain, merged = row["timings"]
        assert file["least_seconds"] is None  # of a file the model is not known
        assert 0 < merged["least_seconds"] < min(merged["round_seconds"])
        assert merged["roofline_speedup"] == pytest.approx(plain["least_seconds"] / merged["least_seconds"])
        assert plain["roofline_speedup"] is None
    assert any("of a large copy" in line for line in notes(results))


def test_the_peak_rate_of_each_number_format_is_beside_them(results):
    assert set(results["peak_rates"]) == {"float32", "int8"}
    assert all(rate > 1e9 for rate in results["peak_rates"].values())
    assert any("of a large matmul" in line and "in int8" in line for line in notes(results))


def test_what_is_shown_and_drawn(results, tmp_path, capsys):
    assert report(results, tmp_path / "new" / "picture.png") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("vit.pt2", "eager", "plain", "merged", "÷ predicted"))
    assert all(len(row) == len(table.columns) for table in tables(results) for row in table.rows)
    assert any("interleaved" in line and "torch" in line for line in notes(results))
    assert (tmp_path / "new" / "picture.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"formats": ["tflite"]}, r"formats \('tflite'\).*'onnx'"),
        ({"formats": []}, r"formats \(\[\]\).*at least one"),
        ({"formats": ["onnx"], "profile": True}, r"profile \(True\) means nothing with formats"),
        ({"formats": ["onnx"], "mode": "training"}, r"mode \('training'\) means nothing with formats"),
        ({"formats": ["onnx"], "images": 0}, r"images \(0\)"),
        ({"formats": ["eager"], "precision": "int8"}, r"precision \(int8\) is of none of formats \(eager\)"),
        ({"precision": "int8"}, r"precision \('int8'\).*formats"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        BenchSettings(**settings)


def test_files_of_one_name_are_both_measured_and_pixels_go_into_those_that_take_them(tmp_path):
    settings = ExportSettings(format="torch", with_preprocessing=True)
    first = export(tiny(), tmp_path / "vit.pt2", settings, preprocessing=PREPROCESSING).path
    names = [str(first), str(tmp_path / "again" / "vit.pt2")]
    (tmp_path / "again").mkdir()
    shutil.copy(*names)
    found = bench(names, BenchSettings(**{**QUICK, "batch_size": 2}))
    assert [timing["key"]["model"] for timing in found["rows"][0]["timings"]] == names


@pytest.mark.parametrize("make", [transformers_vit, make_torchvision])
def test_images_are_prepared_as_the_folder_says(make, tmp_path):
    patchmerger.save(make(), tmp_path / "vit", preprocessing=PREPROCESSING)
    builder = FormBuilder(str(tmp_path / "vit"), BenchSettings(formats=["eager"]), None, tmp_path)
    assert (builder.preprocessing.mean, builder.preprocessing.std) == (PREPROCESSING.mean, PREPROCESSING.std)


def test_what_cannot_be_measured_is_refused(saved, file, tmp_path):
    with pytest.raises(ValueError, match=r"data is for formats"):
        bench(saved, BenchSettings(), data=Pictures())
    with pytest.raises(ValueError, match=r"formats is missing: beside .*vit\.pt2.*eager"):
        bench([saved, file], BenchSettings())
    with pytest.raises(ValueError, match=r"profile \(True\) means nothing with formats and exported files"):
        bench(file, BenchSettings(profile=True))
    with pytest.raises(ValueError, match=r"num_tokens \(4\) means nothing to exported files"):
        bench(file, BenchSettings(num_tokens=4))
    with pytest.raises(ValueError, match=r"formats \(\['frozen'\]\) means nothing to exported files"):
        bench(file, BenchSettings(formats=["frozen"]))
    with pytest.raises(ValueError, match=r"precision \('float32'\) means nothing to exported files"):
        bench(file, BenchSettings(precision="float32"))
    with pytest.raises(ValueError, match=r"data means nothing to exported files"):
        bench(file, BenchSettings(), data=Pictures())
    with pytest.raises(ValueError, match=r"image_size \(48\) must be that of exported files.*\(32, 32\)"):
        bench(file, BenchSettings(image_size=48))
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"old\.json\) exists already"):
        bench(saved, BenchSettings(formats=["eager"], precision="float32"), out=tmp_path / "old.json")


def test_a_form_that_cannot_be_made_says_why_and_the_others_go_on(saved, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("model (ViT) cannot be written as ONNX: its operation aten.odd has no counterpart there")

    monkeypatch.setattr("patchmerger.speed.deployed_forms.export", refuse)
    found = bench(saved, BenchSettings(formats=["eager", "onnx"], precision="float32", **{**QUICK, "batch_size": 1}))
    assert [bool(form["error"]) for form in found["forms"]] == [False, False, True, True]
    assert len(found["rows"][0]["timings"]) == 2
    assert any("not measured" in line and "aten.odd" in line for line in notes(found))


def test_forms_come_in_the_number_formats_that_they_know():
    known = {form: [p for p in ("float32", "bf16", "fp16", "int8") if has_precision(form, p)] for form in
             ("eager", "onnx", "openvino", "torch")}  # fmt: skip
    assert known == {
        "eager": ["float32", "bf16", "fp16"],
        "onnx": ["float32", "fp16", "int8"],
        "openvino": ["float32", "bf16", "fp16", "int8"],
        "torch": ["float32", "bf16", "fp16"],
    }


def test_models_of_any_size_are_measured_in_the_one_asked_for(tmp_path):
    model = insert(make_vit("class token", depth=2, embed_dim=16, dynamic_img_size=True), 4, 1)
    folder = patchmerger.save(model, tmp_path / "vit", preprocessing=PREPROCESSING)
    settings = BenchSettings(formats=["eager"], precision="float32", image_size=48)
    builder = FormBuilder(str(folder), settings, None, tmp_path)
    forms = [builder.make(FormKey(str(folder), merged, "eager", "float32")) for merged in (False, True)]
    assert [form.image_size for form in forms] == [(48, 48)] * 2
    with pytest.raises(ValueError, match=r"image_size \(39, 39\).*\(40, 40\)"):
        FormBuilder(str(folder), BenchSettings(formats=["eager"], image_size=39), None, tmp_path)


def test_models_of_transformers_are_measured_in_another_size_that_they_interpolate_to(tmp_path):
    patchmerger.save(transformers_vit(), tmp_path / "vit", preprocessing=PREPROCESSING)
    settings = BenchSettings(
        **{**QUICK, "batch_size": 1}, formats=["eager", "torch"], precision="float32", image_size=48, num_tokens=4
    )
    found = bench(tmp_path / "vit", settings)
    assert [form["error"] for form in found["forms"]] == [None] * 4
    own = bench(tmp_path / "vit", replace(settings, image_size=None, formats=["eager"]))
    assert found["forms"][0]["flops"] > own["forms"][0]["flops"]
    assert found["rows"][0]["timings"][0]["least_seconds"] > 0


@pytest.mark.slow
def test_int8_files_are_compared_with_their_models(saved):
    settings = BenchSettings(formats=["eager", "onnx"], precision=["float32", "int8"], **QUICK)
    found = bench(saved, settings, data=Pictures(200))
    made = {(f["key"]["form"], f["key"]["precision"], f["key"]["merged"]): f for f in found["forms"]}
    for merged in (False, True):
        int8, whole = made["onnx", "int8", merged], made["onnx", "float32", merged]
        assert (whole["parity"]["images"], whole["parity"]["agreement"]) == (8, 1.0)
        assert int8["error"] or int8["size"] < whole["size"]


@pytest.mark.slow
def test_compiled_forms_give_what_the_eager_one_gives(saved, tmp_path):
    settings = BenchSettings(formats=["eager", "frozen"], precision="float32", **QUICK)
    found = bench(saved, settings)
    assert [form["error"] for form in found["forms"]] == [None] * 4
    builder, images = (
        FormBuilder(str(saved), settings, None, tmp_path),
        np.random.default_rng(0).random((2, 3, 32, 32), np.float32),
    )
    eager, frozen = (builder.make(FormKey(str(saved), True, form, "float32")) for form in settings.formats)
    torch.testing.assert_close(frozen.run(images), eager.run(images), atol=1e-5, rtol=1e-4)


def test_a_form_that_fails_when_it_first_runs_says_why_and_the_others_go_on(saved, monkeypatch):
    def compiled(*_: Any) -> Any:
        def run(_: Any) -> None:
            raise RuntimeError("no compiler of C++ was found")

        return run

    monkeypatch.setattr(deployed_forms, "compiled", compiled)
    found = bench(saved, BenchSettings(**{**QUICK, "formats": ["eager", "frozen"], "precision": "float32"}))
    errors = {form["key"]["form"]: form["error"] for form in found["forms"]}
    assert errors == {"eager": None, "frozen": "no compiler of C++ was found"}
    assert {timing["key"]["form"] for timing in found["rows"][0]["timings"]} == {"eager"}
