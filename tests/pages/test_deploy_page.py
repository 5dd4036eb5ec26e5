"""The page of speed where models are deployed."""

from pathlib import Path

import pytest
from tools.deploy_page import main, measured_in, render

from patchmerger.runs.files import write_json

ROOT = Path(__file__).parents[2]


def timing(form, precision, merged, seconds):
    key = {"model": "vit_base_patch16_224", "merged": merged, "form": form, "precision": precision}
    return {
        "key": key, "calls": 5, "median": seconds, "p95": 1.1 * seconds, "images_per_second": 1 / seconds,
        "round_seconds": [seconds] * 5, "over_eager": [12 / seconds] * 3,
        "over_plain": [1.8] * 3 if merged else None, "predicted": 1.9 if merged else None,
    }  # fmt: skip


def measured(int8_seconds=1.0, agreement=0.98):
    timings = [timing("eager", "float32", False, 12.0), timing("onnx", "int8", False, 2 * int8_seconds),
               timing("onnx", "int8", True, int8_seconds)]  # fmt: skip
    parity = {"images": 1000, "source": "test images of cifar10", "agreement": agreement, "real": True}
    forms = [
        {"key": t["key"], "runtime": "x", "size": 2**20, "flops": 1, "float_layers": [], "error": None,
         "parity": parity if t["key"]["form"] == "onnx" else None}
        for t in timings
    ]  # fmt: skip
    where = {"device_name": "A CPU", "threads": 2, "arithmetic": {"avx2": True, "bf16": False}, "torch": "2.14",
             "onnxruntime": "1.32", "openvino": None, "nncf": None, "load_average": 0.1}  # fmt: skip
    rows = [{"batch_size": 32, "rounds": 5, "timings": timings, "load": 0.2}]
    return {"kind": "deployment", "schema": 2, "command": "patchmerger bench …",
            "settings": {"rounds": 5, "models": ["vit_base_patch16_224"]}, "peak_rates": {"float32": 2e9, "int8": 3.5},
            "environment": where, "forms": forms, "rows": rows}  # fmt: skip


def test_targets_are_reached_missed_or_not_measured():
    page = render({"deploy-x": measured()})
    assert (
        "| ViT-B/16 merged, int8, batch 32 ÷ plain eager float32 | ≥ 13 | 12 | 42 | onnx, int8 | A CPU | **missed** |"
        in page
    )
    assert "| ViT-B/16 merged, int8, batch 1 ÷ plain eager float32 | ≥ 8 | – |  |  |  | not measured |" in page
    assert "≥ 0.97 | 0.98 |  | onnx, int8 | A CPU | reached |" in page
    assert "| 14 | 42 | onnx, int8 | A CPU | reached |" in render({"deploy-x": measured(12 / 14)})


def test_what_the_memory_allows_stands_beside_the_target():
    results = measured()
    results["rows"][0]["timings"][2] |= {"least_seconds": 8.0, "roofline_speedup": 1.71}
    page = render({"deploy-x": results})
    assert "| ≥ 13 | 12 | 48 | onnx, int8 | A CPU | **missed** |" in page
    assert "| form | weights | A CPU, batch 32 |" in page
    assert "| onnx | int8 | **0.95** (0.90) |" in page  # 1.8 ÷ 1.9 is 0.947
    assert "| 12.00 | 1.80 | 0.95 | 1.05 | 1.0 | 98.0% |" in page


def test_of_a_form_measured_twice_the_run_of_more_rounds_counts():
    first, longer = measured(), measured()
    longer["settings"]["rounds"] = 21
    longer["rows"][0]["timings"][2]["over_plain"] = [1.9] * 3
    for files in ({"deploy-x": first, "deploy-y": longer}, {"deploy-x": longer, "deploy-y": first}):
        assert "| onnx | int8 | 1.00 |" in render(files)


def test_each_form_has_its_row_and_the_command_its_place():
    page = render({"deploy-x": measured()})
    assert "$ patchmerger bench …" in page
    assert "| onnx | int8 | merged | 1,000.0 | 1,100.0 | 1.0 | 12.00 | 1.80 | 0.95 | 1.0 | 98.0% |" in page
    assert "1000 test images of cifar10" in page


def test_the_page_and_the_picture_are_made(tmp_path):
    write_json(tmp_path / "deploy-x.json", measured())
    write_json(tmp_path / "deploy-y.json", {"kind": "other"})
    main([str(tmp_path), str(tmp_path / "deploy.md")])
    assert (tmp_path / "deploy.md").read_text() == render({"deploy-x": measured()})
    assert (tmp_path / "deploy-x.png").stat().st_size > 5000
    assert not (tmp_path / "deploy-y.png").exists()


@pytest.mark.skipif(not (ROOT / "docs/deploy.md").exists(), reason="nothing was measured yet")
def test_the_committed_page_is_that_of_the_committed_measurements(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Path("docs/deploy.md").read_text() == render(measured_in(Path("results")))
