"""Patterns of tiny models on the digits: what is read of each, what of two, and how it is shown."""

import copy
import json

import pytest
import torch
from PIL import Image
from tools.evidence.page import render

from patchmerger.cli import main
from patchmerger.data import Preprocessing, load_images
from patchmerger.hub import save
from patchmerger.insertion import insert
from patchmerger.patterns import PatternSettings, compare_patterns, linear_cka, read_patterns
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import Source
from patchmerger.reports.patterns import names_of, report
from patchmerger.runs.files import write_json
from trained_on_digits import trained_vit

pytestmark = pytest.mark.usefixtures("one_thread")

PREPROCESSING = Preprocessing((0.5,) * 3, (0.5,) * 3, crop_pct=1.0)


@pytest.fixture(scope="module")
def images():
    return load_images("digits", seed=0).test.subset(range(60))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A plain model, and one that merges."""
    place = tmp_path_factory.mktemp("models")
    model = trained_vit()
    names = [str(digit) for digit in range(10)]
    save(model, place / "plain" / "model", class_names=names)
    save(insert(copy.deepcopy(model), 6, 2, reducer="atc"), place / "merged" / "model", class_names=names)
    return [str(place / name) for name in ("plain", "merged")]


def read(images, reducer, num_tokens=(8, 4)):
    model = insert(trained_vit(), num_tokens, (1, 3), reducer=reducer)
    return read_patterns(reducer, model, images, PREPROCESSING, batch_size=25, progress=False)


def test_a_plain_model(images):
    model = trained_vit()
    patterns = read_patterns("plain", model, images, PREPROCESSING, progress=False)
    assert patterns.stages == ()
    assert patterns.features.shape == (60, 32)
    pixels = (images.gather(range(60)).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        assert torch.equal(patterns.predictions, model(pixels).argmax(dim=1))
        torch.testing.assert_close(
            patterns.features, model.forward_head(model.forward_features(pixels), pre_logits=True)
        )


@pytest.mark.parametrize("reducer", ["kmedoids", "fixed-l2", "random"])
def test_methods_that_keep(images, reducer):
    patterns = read(images, reducer)
    assert [(stage.after, stage.num_tokens, stage.method) for stage in patterns.stages] == [
        (1, 8, reducer),
        (3, 4, reducer),
    ]
    for stage in patterns.stages:
        assert stage.group is None
        assert (stage.kept.sum(dim=1) == stage.num_tokens).all()
        torch.testing.assert_close(stage.usage.flatten(), stage.kept.float().mean(dim=0) * 16 / stage.num_tokens)
    first, second = patterns.stages
    assert (first.kept | ~second.kept).all()  # what the second keeps, the first has kept


def test_a_method_that_keeps_and_fuses_the_rest(images):
    for number, stage in enumerate(read(images, "evit").stages, start=1):
        assert (stage.kept.sum(dim=1) >= stage.num_tokens - number).all()
        assert (stage.kept.sum(dim=1) < stage.num_tokens).all()
        assert stage.group is not None


@pytest.mark.parametrize("reducer", ["dpcknn", "atc", "sinkhorn", "patchmerger", "average"])
def test_methods_that_merge(images, reducer):
    for stage in read(images, reducer).stages:
        assert stage.kept is None
        assert stage.group.shape == (60, 16)
        assert stage.group.max() < stage.num_tokens
        assert float(stage.usage.mean()) == pytest.approx(1, abs=1e-5)


def test_models_are_compared(folders, tmp_path):
    settings = PatternSettings(images=80, reducers=("kmedoids", "fixed-l2", "random", "dpcknn"), after=(1, 3))
    results = compare_patterns(folders, "digits", settings, out=tmp_path / "out.json", progress=False)
    assert json.loads((tmp_path / "out.json").read_text()) == results
    plain, merged, *others = results["models"]
    assert [model["name"] for model in others] == [f"{name} 0.5" for name in settings.reducers]
    assert plain["accuracy"] > 0.5
    assert plain["flops"] > merged["flops"]
    assert [stage["num_tokens"] for stage in others[0]["stages"]] == [8, 4]
    pairs = {tuple(pair["models"]): pair for pair in results["pairs"]}
    assert len(pairs) == 15
    between = pairs[plain["name"], merged["name"]]
    assert (between["iou"], between["nmi"]) == (None, None)
    assert between["accuracy_difference"] == pytest.approx(plain["accuracy"] - merged["accuracy"])
    assert 0.3 < between["cka"] < 1
    kept = pairs["kmedoids 0.5", "random 0.5"]
    assert len(kept["iou_by_merger"]) == 2
    assert 0 < kept["iou"] < 1
    assert kept["iou_by_chance"] == pytest.approx((1 / 3 + 1 / 7) / 2)
    groups = pairs[merged["name"], "dpcknn 0.5"]
    assert len(groups["nmi_by_merger"]) == 1  # last with last
    assert 0 < groups["nmi"] < 1
    first, *_, every = results["correlations"]
    assert (first["model"], every["model"]) == (plain["name"], None)
    assert first["cka"]["pairs"] == 5
    assert first["cka"]["spearman"]["rho"] < 0  # the less alike, the larger the drop
    assert every["cka"]["pairs"] == 15
    assert first["nmi"] is None
    with pytest.raises(FileExistsError, match=r"out \(.*out\.json\) exists already"):
        compare_patterns(folders, "digits", settings, out=tmp_path / "out.json")


def test_the_command(folders, tmp_path, capsys):
    picture = tmp_path / "patterns.png"
    arguments = ["--images", "40", "--reducers", "[kmedoids,random]", "--keep_rates", "[0.25,0.5]", "--after", "[2]"]
    arguments += ["--picture", str(picture), "--progress", "false"]
    out = tmp_path / "patterns.json"
    assert main(["patterns", *folders, *arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("kmedoids 0.25", "random 0.5", "4 after 2", "IoU of the kept patches", "Kendall τ, Spearman ρ"):
        assert words in printed
    with Image.open(picture) as drawn:
        assert drawn.width > 1000
    results = json.loads(out.read_text())
    section = section_of(Source(out, results))
    best = max(results["models"][1:], key=lambda model: model["accuracy"])
    assert names_of(results)[best["name"]] in section.verdict
    assert [len(table.rows) for table in section.tables[:2]] == [len(results["models"]), len(results["pairs"])]
    assert len(section.pictures) == 1
    assert not section.missing
    page = render({"patterns-vit-small-cifar10": results})
    assert "rank correlation with the drop in accuracy: CKA of features τ = " in page
    assert all(f"| {name} |" in page for name in names_of(results).values())


def test_methods_in_two_plain_models(folders, tmp_path, capsys):
    small = copy.deepcopy(trained_vit())
    small.blocks = torch.nn.Sequential(*small.blocks[1:])
    names = [str(digit) for digit in range(10)]
    save(small, tmp_path / "small" / "model", class_names=names, model_args={"depth": 3})
    models = [folders[0], str(tmp_path / "small"), folders[1]]
    settings = PatternSettings(images=60, reducers=("kmedoids", "fixed-l2", "random", "dpcknn"), after=(1, 2))
    results = compare_patterns(models, "digits", settings, progress=False)
    given, copies = results["models"][:3], results["models"][3:]
    assert [model["plain"] for model in given] == [None] * 3
    assert [model["plain"] for model in copies] == [given[0]["name"]] * 4 + [given[1]["name"]] * 4
    accuracies = {(model["plain"], model["reducer"]): model["accuracy"] for model in copies}
    (both,) = results["same_methods"]
    assert both["models"] == [given[0]["name"], given[1]["name"]]
    assert [method["reducer"] for method in both["methods"]] == list(settings.reducers)
    for method in both["methods"]:
        for plain, drop in zip(given, method["drops"], strict=False):
            assert drop == pytest.approx(plain["accuracy"] - accuracies[plain["name"], method["reducer"]])
    found = {method["reducer"]: method for method in both["methods"]}
    assert found["fixed-l2"]["iou"] == found["random"]["iou"] == 1  # no image changes what they keep, nor any model
    assert found["kmedoids"]["iou_by_chance"] < found["kmedoids"]["iou"] < 1
    assert found["dpcknn"]["iou"] is None
    assert 0 < found["dpcknn"]["nmi"] < 1
    assert both["drops"]["pairs"] == 4
    assert both["drops_by_keep_rate"] == [{"keep_rate": 0.5, "drops": both["drops"]}]
    ranks = {rank["model"]: rank["cka"] for rank in results["correlations"]}
    assert ranks[given[0]["name"]]["pairs"] == ranks[given[1]["name"]]["pairs"] == 5  # its copies, and the merged one
    assert ranks[given[2]["name"]]["pairs"] == 10
    assert ranks[None]["pairs"] == 2 * (5 * 4 // 2) + 10  # none across the two families
    report(results, tmp_path / "patterns.png")
    printed = capsys.readouterr().out
    assert "The same methods in plain and in small" in printed
    assert "small: kmedoids 0.5" in printed
    assert "Rank correlation of the drops in plain with those of the same methods in small" in printed
    write_json(tmp_path / "patterns.json", results)
    section = section_of(Source(tmp_path / "patterns.json", results))
    assert not [part for part in section.missing if "command" not in part]
    assert section.tables[2].caption == "The same methods in plain and in small"
    assert section.verdict.startswith("Of 4 models **plain: ")


def test_few_models_are_shown_without_correlations(folders, capsys):
    report(compare_patterns(folders, "digits", PatternSettings(images=20), progress=False))
    assert "need at least four pairs: name more models" in capsys.readouterr().out


def test_features_of_one_model_are_alike(images):
    patterns = read(images, "atc", (16, 16))
    plain = read_patterns("plain", trained_vit(), images, PREPROCESSING, progress=False)
    assert linear_cka(patterns.features, plain.features) == pytest.approx(1)
    assert torch.equal(patterns.predictions, plain.predictions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 1}, r"images \(1\) must be at least 2"),
        ({"reducers": ("sit",)}, r"reducers \('sit'\) must be trained first"),
        ({"reducers": ("atcc",)}, r"reducers \('atcc'\) must be one of .*did you mean 'atc'"),
        ({"keep_rates": (1.0,)}, r"keep_rates \(1\) must be above 0 and below 1"),
        ({"reducers": ("atc",), "keep_rates": ()}, r"keep_rates is empty"),
        ({"after": (2, 2)}, r"after \(2, 2\) names one twice"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        PatternSettings(**settings)


def test_models_that_cannot_be_compared(folders):
    with pytest.raises(ValueError, match=r"models \(.*plain\): at least two are compared"):
        compare_patterns(folders[:1], "digits")
    with pytest.raises(ValueError, match=r"names one twice"):
        compare_patterns([folders[0], folders[0]], "digits")
    with pytest.raises(ValueError, match=r".*plain cannot be given kmedoids at keep rate 0.5: after \(4\) must be"):
        compare_patterns(folders, "digits", PatternSettings(reducers=("kmedoids",), after=(4,)), progress=False)
    with pytest.raises(ValueError, match=r"models \(.*merged\) have mergers; reducers are put into plain ones"):
        compare_patterns(folders[1:], "digits", PatternSettings(reducers=("atc",)), progress=False)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a/model", "runs/b"], ["a", "b"]),
        (["one/seed-0/model", "two/seed-0/model"], ["one/seed-0", "two/seed-0"]),
        (["vit_tiny", "user/name"], ["vit_tiny", "name"]),
    ],
)
def test_short_names(names, short):
    models = [{"name": name, "plain": None} for name in names]
    assert list(names_of({"models": models}).values()) == short
    copies = [{"name": f"copy of {name}", "plain": name, "reducer": "atc", "keep_rate": 0.5} for name in names]
    assert list(names_of({"models": [*models, copies[0]]}).values()) == [*short, "atc 0.5"]
    assert list(names_of({"models": models + copies}).values()) == [*short, *(f"{name}: atc 0.5" for name in short)]
