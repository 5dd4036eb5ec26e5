"""The page of measured speed and its targets."""

from pathlib import Path

import pytest
from tools.speed_page import main, render
from tools.speed_targets import TARGETS, activations, each_at_its_best, mergers_share, of_flops

from patchmerger.runs.files import read_json

ROOT = Path(__file__).parents[2]


def timing(name, speedup, activation_memory=100):
    return {
        "name": name, "images_per_second": 10.0 * speedup, "speedup": speedup, "of_predicted": speedup / 1.9,
        "of_roofline": speedup / 1.85, "ratio_quartiles": [1 / (speedup + 0.1), 1 / (speedup - 0.1)],
        "activation_memory": activation_memory, "peak_memory": None, "uncertain": None, "predicted_speedup": 1.9,
        "roofline_speedup": 1.85,
    }  # fmt: skip


def benchmark(speedup=1.85, kept=54, share=0.003, error=None):
    key = {"device": "cpu", "precision": "float32", "compile": False}
    measurement = {"rounds": 5, "timings": [timing("plain", 1.0), timing("merged", speedup, kept)]}
    peak_rates = {
        "device": "A CPU",
        "precision": "float32",
        "threads": 2,
        "flops_per_second": 1e11,
        "bytes_per_second": 1e10,
    }
    rows = [
        {
            "key": {**key, "model": "vit_base_patch16_224", "training": training, "batch_size": size},
            "measurement": None if error else measurement, "merged_against": {}, "error": error,
            "peak_rates": peak_rates,
        }
        for training, size in ((False, 32), (False, 1), (True, 16))
    ]  # fmt: skip
    part = {"seconds": 0.1, "flops": 10**9, "flops_per_second": 1e10, "share": 0.5}
    parts = [{"name": "blocks 1–6", **part}, {"name": "merger after 6", **part, "share": share}]
    profile = {"key": rows[0]["key"], "models": {"plain": parts[:1], "merged": parts}, "error": None}
    environment = {"device_name": "A CPU", "threads": 2, "torch": "2.15", "timm": "1.0.31"}
    return {
        "schema": 3, "command": "patchmerger bench vit_base_patch16_224", "environment": environment, "rows": rows,
        "profiles": [profile],
    }  # fmt: skip


def test_targets_that_are_reached_and_missed():
    page = render({"bench-one": benchmark(speedup=1.7)})
    assert "inference, ViT-B/16, batch 32 | ≥ 0.95 | 0.89 | float32, eager, cpu | **missed** |" in page
    assert "predicted, inference, ViT-B/16, batch 1 | ≥ 0.85 | 0.89 | float32, eager, cpu | reached |" in page
    assert "batch 32 | ≤ 1.5% | 0.3% | float32, eager, cpu | reached |" in page
    assert "merged ÷ plain, ViT-B/16, batch 16 | ≤ 0.56 | 0.54 | float32, eager, cpu | reached |" in page
    assert "inference, ViT-S/16, batch 32 | ≥ 0.95 | – |  | not measured |" in page


def test_the_best_row_counts():
    page = render({"bench-one": benchmark(speedup=1.5), "bench-two": benchmark(speedup=1.9)})
    assert "inference, ViT-B/16, batch 32 | ≥ 0.95 | 1.00 |" in page


def test_a_row_that_failed_is_shown_and_counts_for_nothing():
    page = render({"bench-one": benchmark(error="out of memory")})
    assert "| out of memory |" in page
    assert "inference, ViT-B/16, batch 32 | ≥ 0.95 | – |  | not measured |" in page


def test_values():
    first, *_ = benchmark()["rows"]
    assert of_flops(first) == pytest.approx(1.85 / 1.9)
    assert activations(first) == pytest.approx(0.54)
    assert mergers_share(first) is None


def test_against_vit_pytorch_each_is_taken_in_its_own_best_mode():
    def row(compile, ours, theirs):
        timings = [timing("plain", 1.0), timing("merged", ours), timing("vit-pytorch", theirs)]
        against = {"vit-pytorch": [ours / theirs, [1.0, 1.0]]}
        return {"key": {"compile": compile}, "measurement": {"timings": timings}, "merged_against": against}

    value, found = each_at_its_best([row(False, 2.0, 1.0), row("frozen", 1.5, 1.6)])
    assert value == pytest.approx(2.0 / 1.6)
    assert found["key"]["compile"] is False
    assert each_at_its_best([benchmark()["rows"][0]]) is None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.what)
def test_each_target_is_measured_in_the_committed_benchmarks(target):
    found = target.best(b for b in map(read_json, (ROOT / "results").glob("bench-*.json")) if b["schema"] == 3)
    assert found is not None
    assert 0 < found[0] < 2


def test_the_committed_page_is_that_of_the_committed_benchmarks(tmp_path):
    main([str(ROOT / "results"), str(tmp_path / "page.md")])
    page = (ROOT / "docs" / "measured-speed.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page, "make speed-page makes it again"
