"""Sections of the report: each kind of results has its verdict, figures, charts and tables, or says what is missing."""

import pytest

from patchmerger.reports.html.kinds import KINDS
from patchmerger.reports.html.page import render
from reports.html.pages import Page, results_of, section


def test_a_comparison_has_the_numbers_of_its_results():
    results = results_of("cifar10-width-128")
    found, merged = section(results), results["variants"]["merged"]
    timing = next(t for t in results["speed"]["inference"]["timings"] if t["name"] == "merged")
    assert f"{timing['speedup']:.2f} times as fast" in found.verdict
    assert f"{-100 * merged['difference']['mean']:.2f} points less accurate" in found.verdict
    assert f"{100 * merged['metric_mean']:.2f}%" in found.verdict
    (diagram,) = found.diagrams
    assert [(s.first, s.last, s.tokens, s.merges_to) for s in diagram.segments] == [(1, 4, 65, 9), (5, 8, 9, None)]
    names = [row[0].text for row in found.tables[0].rows]
    assert names == list(results["variants"])
    column = list(found.tables[0].columns).index("speed-up")
    assert [row[column].value for row in found.tables[0].rows] == [
        next(t["speedup"] for t in results["speed"]["inference"]["timings"] if t["name"] == name) for name in names
    ]
    assert not found.missing


def test_an_interval_that_holds_zero_is_no_proof_of_equality():
    results = results_of("cifar10-width-128")
    results["variants"]["merged"]["difference"] |= {"mean": 0.001, "low": -0.01, "high": 0.012}
    assert "no difference in accuracy is shown" in section(results).verdict
    results["speed"]["inference"]["timings"][1]["uncertain"] = "wide quartiles"
    assert "uncertain: wide quartiles" in section(results).verdict


def test_tokens_block_by_block_where_the_results_have_them():
    results = results_of("cifar10-width-128")
    results["variants"]["merged"] |= {"block_tokens": [65, 50, 40, 40], "tokens_out": 30}
    (diagram,) = section(results).diagrams
    assert [(s.first, s.last, s.tokens, s.merges_to) for s in diagram.segments] == [
        (1, 1, 65, 50), (2, 2, 50, 40), (3, 4, 40, 30)
    ]  # fmt: skip
    results["settings"]["model"]["args"].pop("depth")
    results["variants"]["merged"].pop("block_tokens")
    (diagram,) = section(results).diagrams
    assert (diagram.segments[-1].last, "not in the results" in diagram.caption) == (None, True)


def acceleration(**changes) -> dict:
    """Results of ``patchmerger accelerate``, in its form."""
    difference = {"mean": -0.01, "low": -0.02, "high": -0.005, "over": "images", "n": 200, "leaves_out": None}
    stage = {"accuracy": 0.8, "agreement": 0.9, "divergence": 0.1, "ece": 0.05, "difference": difference, "images": 200}
    timing = results_of("cifar10-width-128")["speed"]["inference"]["timings"]
    return {
        "command": "patchmerger accelerate --model it",
        "settings": {"model": "runs/vit", "data": {"source": "photos"}, "seed": 0},
        "metric": "accuracy",
        "placement": {"after": 2, "num_tokens": 8, "reducer": "patchmerger"},
        "block_tokens": [65, 65, 9, 9],
        "tokens_out": 9,
        "recovery": {
            "epochs": 3.0,
            "phases": {
                "rear": {
                    "watched": {"images": 100, "before": 0.5, "after": 0.8},
                    "history": [{"epoch": 1.0, "val_metric": 0.7, "train_loss": 1.0}],
                }
            },
        },
        "evaluation": {name: dict(stage) for name in ("plain", "initialised", "recovered")},
        "speedup": {"predicted": 1.7, "measured": 1.68},
        "speed": {"timings": [timing[0], {**timing[1], "name": "accelerated"}]},
        "max_drop": 0.5,
        "met": False,
        "advice": ["more training (--epochs 9)"],
        "environment": {"device": "cpu", "device_name": "a processor", "torch": "2.14"},
    } | changes


def test_an_acceleration_says_what_is_lost_and_what_would_help():
    found = section(acceleration())
    assert "1.68 times as fast" in found.verdict
    assert "1.00 points less accurate" in found.verdict
    assert "more than the 0.5 points that were accepted" in found.verdict
    assert any("--epochs 9" in remark for remark in found.remarks)
    assert found.charts[1].data[0]["y"] == [50.0, 70.0]
    assert not found.missing
    assert "within the 0.5 points" in section(acceleration(met=True)).verdict
    assert "agrees with it on **90.0% of the images**" in section(acceleration(met=None)).verdict


def test_forms_that_are_deployed_are_held_against_the_plain_eager_model():
    def timing(merged: bool, form: str, precision: str, over: list[float] | None) -> dict:
        key = {"model": "runs/vit", "merged": merged, "form": form, "precision": precision}
        return {
            "key": key, "median": 0.02, "p95": 0.03, "images_per_second": 50.0, "over_eager": over, "over_plain": None,
            "predicted": None,
        }  # fmt: skip

    timings = [
        timing(False, "eager", "fp32", None),
        timing(True, "eager", "fp32", [1.7, 1.8, 1.9]),
        timing(True, "onnx", "int8", [7.0, 8.0, 8.5]),
    ]
    forms = [{"key": t["key"], "size": 2**20, "parity": None, "error": None} for t in timings]
    failed = {"key": {"model": "runs/vit", "merged": True, "form": "openvino", "precision": "bf16"}, "error": "no bf16"}
    results = {
        "schema": 1, "rows": [{"batch_size": 32, "timings": timings}], "forms": [*forms, failed], "settings": {},
        "environment": {}, "command": "patchmerger bench runs/vit --formats [eager, onnx]",
    }  # fmt: skip
    found = section(results)
    assert "8.00 times as fast** at a batch of 32 (onnx, int8)" in found.verdict
    assert found.charts[0].data[0]["x"] == [1.8, 8.0]
    assert len(found.charts[0].data) == 1
    assert len(found.tables[0].rows) == 3
    assert found.missing == ["openvino, bf16 (no bf16)"]


def test_every_kind_has_a_section_even_of_results_that_lack_nearly_all():
    least = {
        "accelerate": dict.fromkeys(("placement", "evaluation", "recovery")),
        "demo": dict.fromkeys(("placement", "models", "agreement")),
        "bench": {"rows": [], "schema": 3, "forms": []},
        "fit": {"test_metric": 0.5, "history": []},
        "export": {"parity": {}, "info": {}},
        "accelerate-study": {"study": "accelerate"},
        "place-study": {"study": "place"},
        "fewshot": {"results": [], "draws": 1, "strengths": []},
        "hosts": {"findings": [{}], "counts": {}},
    }
    for kind in KINDS:
        found = section(least.get(kind.command, {"study": kind.command}))
        assert found.kind == kind.command
        assert found.missing
        Page(render([found]))


@pytest.mark.parametrize("name", ["cifar10-width-128", "transfer-small", "sweep-cifar10-small", "bench-inference-cpu"])
def test_what_is_missing_is_named_and_the_rest_shown(name):
    whole = results_of(name)
    for key in whole:
        if key in ("study", "rows", "schema"):
            continue
        found = section({k: v for k, v in whole.items() if k != key})
        Page(render([found]))
        assert found.tables or found.charts or found.missing
    without = section({k: v for k, v in results_of("cifar10-width-128").items() if k != "speed"})
    assert any("accuracy against speed" in each and "'speed'" in each for each in without.missing)
    assert [chart.title for chart in without.charts] == ["Training curves"]


def test_a_loss_that_is_no_number_is_a_gap():
    results = results_of("digits")
    results["variants"]["plain"]["history"][0][2]["val_metric"] = float("nan")
    curve = next(t for t in Page(render([section(results)])).charts["chart-1-2"]["data"] if t["mode"] != "lines")
    assert curve["y"][2] is None


def test_epochs_without_validation_are_no_curve():
    results = results_of("digits")
    for variant in results["variants"].values():
        for run in variant["history"]:
            for row in run:
                row["val_metric"] = None
    assert [chart.title for chart in section(results).charts] == [
        chart.title for chart in section(results_of("digits")).charts if chart.title != "Training curves"
    ]
