"""The whole census: what it lists, writes, prints and refuses; its findings, and the page made from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tools.hosts_page import main, render

from patchmerger.census import survey as module
from patchmerger.census.census import Census, Finding, read_census
from patchmerger.census.survey import Architecture, take_census
from patchmerger.cli import main as run
from patchmerger.reports.hosts import show

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
CONVOLUTIONS = {"kind": "not one sequence", "reason": "it convolves", "way_out": "take a ViT"}
FOUND = (
    Finding("timm", "vit_base_patch16_224", "VisionTransformer", "merged", blocks=12, prefix=1, patches=196),
    Finding("timm", "vit_base_patch14_dinov2", "VisionTransformer", "merged", blocks=12, prefix=1, patches=1369),
    Finding("timm", "vit_gap", "VisionTransformer", "merged", blocks=12, prefix=0, patches=196),
    Finding(
        "timm", "beit", "Beit", "merged", "relative bias", "it has a bias", "positions='drop'", "drop",
        blocks=12, prefix=1, patches=196,
    ),
    Finding("timm", "eva", "Eva", "merged", positions="centroid", blocks=24, prefix=1, patches=256),
    Finding("timm", "resnet18", "ResNet", "refused", **CONVOLUTIONS),
    Finding("timm", "vgg11", "VGG", "refused", **CONVOLUTIONS),
    Finding("timm", "mixer", "MlpMixer", "refused", "tied to N", "weights | of places", "another model"),
    Finding("transformers", "DinatModel", "", "not buildable", reason="ImportError: needs natten"),
    Finding("torchvision", "resnet18", "ResNet", "refused", **CONVOLUTIONS),
)  # fmt: skip
VERSIONS = {"python": "3.11", "timm": "1.0.31", "transformers": "5.0", "torchvision": "0.29"}
CENSUS = Census(FOUND, VERSIONS, (), "command")
FAILED = Finding("timm", "liar", "Liar", "failed", reason="NotAsDescribedError: 17 [tokens]")


def survey_all(monkeypatch: pytest.MonkeyPatch, found: tuple[Finding, ...] = FOUND, **options: object) -> Census:
    """The census without its ten minutes."""
    by_name = {(finding.library, finding.name): finding for finding in found}
    monkeypatch.setattr(
        module,
        "architectures",
        lambda library, filter="*": [Architecture(*key, build=None) for key in by_name if key[0] == library],
    )
    monkeypatch.setattr(module, "examine", lambda library, name, build: by_name[library, name])
    return take_census(**options)


def test_one_architecture(tmp_path, capsys):
    out = tmp_path / "new" / "hosts.json"
    assert run(["hosts", "--filter", "test_vit", "--library", "timm", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed == "test_vit (timm): merged; VisionTransformer, 6 blocks, 1 + 100 tokens become 1 + M\n"
    census = read_census(out)
    assert [(f.name, f.status, f.patches) for f in census.findings] == [("test_vit", "merged", 100)]
    assert census.command == f"patchmerger hosts --filter test_vit --library timm --out {out}"
    assert census.versions.keys() == {"python", "patchmerger", "torch", "timm"}
    assert run(["hosts", "--filter", "test_vit", "--out", str(out)]) == 2
    assert "exists already: take another name, or set overwrite to true" in capsys.readouterr().err
    assert run(["hosts", "--filter", "resnet10t", "--library", "timm", "--out", str(out), "--overwrite", "true"]) == 0
    assert "resnet10t (timm): refused (not one sequence); ResNet: it is" in capsys.readouterr().out
    assert [f.name for f in read_census(out).findings] == ["resnet10t"]


def test_the_shipped_census_answers_at_once_and_without_torch():
    program = (
        "import sys; from patchmerger.cli import main; status = main(['hosts', '--filter', 'vit_*']); "
        "sys.exit(status or 3 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vit_base_patch16_224" in done.stdout
    assert "--fresh true" in done.stdout
    assert max(map(len, done.stdout.split("VisionTransformer (timm): ")[0].splitlines())) <= 80


def test_a_name_that_the_shipped_census_lacks_is_tried(monkeypatch, capsys):
    monkeypatch.setattr("patchmerger.census.census.shipped_census", lambda: CENSUS)
    assert run(["hosts", "--filter", "test_vit"]) == 0
    assert "test_vit (timm): merged" in capsys.readouterr().out


def test_what_is_no_census(tmp_path):
    (tmp_path / "other.json").write_text('{"findings": [{}]}')
    with pytest.raises(ValueError, match=r"other\.json is no census"):
        read_census(tmp_path / "other.json")


def test_written_and_read(monkeypatch, tmp_path):
    out = tmp_path / "hosts.json"
    census = survey_all(monkeypatch, out=out)
    assert census.findings == FOUND
    assert read_census(out) == census
    content = json.loads(out.read_text())
    assert content["counts"]["timm"] == {"merged": 5, "refused": 3}
    assert content["findings"][0] == {
        "library": "timm", "name": "vit_base_patch16_224", "family": "VisionTransformer", "status": "merged",
        "blocks": 12, "prefix": 1, "patches": 196,
    }  # fmt: skip
    lines = out.read_text().splitlines()
    assert sum('"name"' in line for line in lines) == len(FOUND)


def test_a_failure_is_named_and_the_exit_status(monkeypatch, capsys):
    survey_all(monkeypatch, (*FOUND, FAILED))
    assert run(["hosts", "--fresh", "true"]) == 1
    assert "liar (timm): failed; Liar: NotAsDescribedError: 17 [tokens]" in capsys.readouterr().out


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_nothing_is_half_written(monkeypatch, tmp_path, interrupt):
    survey_all(monkeypatch)
    seen = []

    def examine(library: str, name: str, build: object) -> Finding:
        if len(seen) == 3:
            raise interrupt("in the middle")
        seen.append(name)
        return FOUND[0]

    monkeypatch.setattr(module, "examine", examine)
    with pytest.raises(interrupt, match="in the middle"):
        take_census(out=tmp_path / "hosts.json")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(module, "installed", lambda library: library != "transformers")
    census = survey_all(monkeypatch)
    assert census.missing == ("transformers",)
    assert {finding.library for finding in census.findings} == {"timm", "torchvision"}
    assert show(census) == 0
    assert "transformers is not installed: its models were left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"library \('transformers'\) is not installed: pip install transformers"):
        take_census(library="transformers")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"library": "jax"}, r"library \('jax'\) must be one of 'all', 'timm', 'transformers', 'torchvision'"),
        ({"library": "timm", "filter": "vit_base_patch16_225"}, "of timm; did you mean vit_base_patch16_224, "),
        ({"library": "timm", "filter": "dinov9*"}, r"matches no architecture of timm; '\*dinov9\*' finds it as a part"),
        ({"out": ROOT}, "is a folder: name a file in it"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        take_census(**options)


def test_families_and_reasons():
    families = [(f.library, f.name, f.positions, f.by_default, len(f.members)) for f in CENSUS.families]
    assert families == [
        ("timm", "VisionTransformer", None, True, 3),
        ("timm", "Beit", "drop", False, 1),
        ("timm", "Eva", "centroid", True, 1),
    ]
    assert CENSUS.families[0].prefixes == [0, 1]
    assert [(r.kind, len(r.members)) for r in CENSUS.refused] == [("not one sequence", 3), ("tied to N", 1)]
    assert CENSUS.refused[0].classes == {"timm": ["ResNet", "VGG"], "torchvision": ["ResNet"]}


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr("patchmerger.reports.hosts._FEW", 0)
    assert show(CENSUS) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["timm", "5", "3", "0", "0"] in rows
    assert ["VisionTransformer", "timm", "0,", "1", "–", "3"] in rows
    assert ["Beit", "timm", "1", "drop", "1"] in rows
    assert ["not", "one", "sequence", "it", "convolves", "take", "a", "ViT", "3"] in rows
    assert ["DinatModel", "(transformers):", "not", "buildable;", "ImportError:", "needs", "natten"] in rows


def test_the_page():
    page = render(CENSUS)
    assert "10 in all" in page
    assert "None failed" in page
    assert "| **all** | **5** | **4** | **1** |" in page
    names = "`vit_base_patch16_224`, `vit_base_patch14_dinov2`, `vit_gap`"
    assert f"| `VisionTransformer` | 3 | 0, 1 | – | {names} |" in page
    assert "| `Beit` | 1 | 1 | drop, to be asked for | `beit` |" in page
    assert "<details>" not in page
    assert "(3, *not one sequence*)" in page
    assert "| it convolves | take a ViT | 3 | timm: ResNet, VGG; torchvision: ResNet |" in page
    assert "| weights \\| of places |" in page
    assert "| `DinatModel` (transformers) | ImportError: needs natten |" in page
    assert "`command` with python 3.11, timm 1.0.31" in page
    failed = render(Census((*FOUND, FAILED), CENSUS.versions))
    assert "1 failed: neither merged nor refused." in failed
    assert "| `liar` (timm) | NotAsDescribedError: 17 [tokens] |" in failed


def test_a_long_family_has_its_known_names_in_front(monkeypatch):
    monkeypatch.setattr("tools.hosts_page._FEW", 2)
    page = render(CENSUS)
    assert "| `VisionTransformer` | 3 | 0, 1 | – | ViT, DINOv2 |" in page
    assert "**VisionTransformer**: `vit_base_patch16_224`, `vit_base_patch14_dinov2`, `vit_gap`\n" in page
    assert "**Eva**" not in page


def test_families_of_transformers_are_models():
    names = ("ViTModel", "ViTForImageClassification", "ViTMAEModel", "CLIPVisionModelWithProjection", "CLIPVisionModel")
    found = tuple(Finding("transformers", name, name, "merged", prefix=1) for name in names)
    families = Census(found, {}).families
    assert [(f.name, len(f.members)) for f in families] == [("CLIP", 2), ("ViT", 2), ("ViTMAE", 1)]


def test_the_committed_page_is_made_from_the_committed_census(tmp_path):
    results, page = ROOT / "results" / "hosts.json", ROOT / "docs" / "hosts.md"
    main([str(results), str(tmp_path / "hosts.md")])
    assert (tmp_path / "hosts.md").read_text() == page.read_text(), "make hosts-page makes it again"


def test_the_committed_census_is_whole():
    census = read_census(ROOT / "results" / "hosts.json")
    assert census.failures == []
    assert census.missing == ()
    assert census.command == "patchmerger hosts --out results/hosts.json"
    assert census.counts["timm"]["merged"] >= 318
    assert sum(census.counts["timm"].values()) >= 1371
    assert census.as_json() == (ROOT / "results" / "hosts.json").read_text()
