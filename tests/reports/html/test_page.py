"""The report: one file that needs nothing else, with the numbers of the results; what is missing or broken is named."""

import json
import re
import subprocess
import sys

import plotly.graph_objects as go
import pytest

from patchmerger.cli import main
from patchmerger.reports.html.page import render, write_report
from patchmerger.reports.parts.colours import contrast, on_dark
from patchmerger.reports.pictures.style import variant_colours
from reports.html.pages import RESULTS, Page, results_of, section

FILES = [
    "cifar10-width-128", "digits", "positions-digits", "sweep-cifar10-small", "transfer-small", "bench-inference-cpu",
    "bench-384-cpu", "bench-training-cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of all committed kinds, as text and parsed."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report([RESULTS / f"{name}.json" for name in FILES], out)
    text = out.read_text()
    return text, Page(text)


def test_nothing_is_fetched_from_anywhere(written):
    _, page = written
    assert not page.find("link")
    assert not [script for script in page.find("script") if "src" in script.attributes]
    assert all(image.attributes["src"].startswith("data:") for image in page.find("img"))
    assert "default-src 'none'" in page.find("meta", http_equiv="Content-Security-Policy")[0].attributes["content"]
    (style,) = page.find("style")
    assert "url(" not in style.text
    assert "@import" not in style.text


def test_every_section_has_its_verdict_charts_and_tables(written):
    _, page = written
    sections = page.find("section")
    assert len(sections) == len(FILES)
    for each in sections:
        assert re.search(r"\d\.\d\d( to \d\.\d\d)? times as fast", each.find("p", class_="verdict")[0].text)
        assert each.find("dl", class_="figures")
        assert each.find("figure", class_="chart")
        assert each.find("table")
        assert each.find("pre")[0].text.startswith("patchmerger ")
        assert "AVX512" in each.find("details")[-1].text


def test_the_page_can_be_used_without_eyes_or_a_mouse(written):
    _, page = written
    assert page.find("html")[0].attributes["lang"] == "en"
    assert [len(page.find(tag)) for tag in ("main", "header", "footer", "h1")] == [1, 1, 1, 1]
    ids = [e.attributes["id"] for tag in ("h2", "section", "div") for e in page.find(tag) if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for each in page.find("section"):
        assert each.attributes["aria-labelledby"] in ids
    for link in page.find("a"):
        assert link.attributes["href"].lstrip("#") in [*ids, "content"]
    for table in page.find("table"):
        assert table.find("caption")[0].text
        headings = table.find("thead")[0].find("th")
        assert {h.attributes["scope"] for h in headings} == {"col"}
        assert {h.attributes["aria-sort"] for h in headings} == {"none"}
        assert all(len(h.find("button")) == 1 for h in headings)
        for row in table.find("tbody")[0].find("tr"):
            assert len(row.children) == len(headings)
            assert row.children[0].attributes["scope"] == "row"
    for plot in page.find("div", class_="plot"):
        assert plot.attributes["role"] == "img"
        assert re.search(r"\d", plot.attributes["aria-label"])
    for figure in page.find("figure"):
        assert figure.find("figcaption")[0].text


def test_charts_are_what_plotly_draws_with_the_plain_model_as_reference(written):
    _, page = written
    charts = page.charts
    assert set(charts) == {plot.attributes["id"] for plot in page.find("div", class_="plot")}
    for chart in charts.values():
        # plotly refuses properties and values that it does not know; our colours are put in by the page
        go.Figure(json.loads(re.sub(r'"@([0-9a-f]{6})(/[\d.]+)?"', r'"#\1"', json.dumps(chart))))
    first = charts["chart-1-1"]
    plain = next(trace for trace in first["data"] if trace["name"] == "plain")
    assert (plain["x"], plain["marker"]["symbol"]) == ([1.0], ["star"])
    assert first["layout"]["shapes"][0]["y0"] == plain["y"][0]
    assert all("<b>" in text for trace in first["data"] for text in trace["hovertext"])


def test_folders_of_unknown_kinds_and_broken_files_are_named(tmp_path, capsys):
    whole = (RESULTS / "digits.json").read_text()
    runs = {"good": whole, "cut": whole[:5000], "strange": '{"colour": "red"}', "list": "[1, 2]"}
    for name, text in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    folders = [str(tmp_path / name) for name in (*runs, "begun", "photos")]
    out = tmp_path / "out" / "report.html"
    assert main(["report", *folders, "--out", str(out)]) == 1
    named = {
        "cut": "cut short",
        "strange": "unknown kind",
        "list": "list",
        "begun": "unfinished",
        "photos": "no results",
    }
    errors = capsys.readouterr().err
    page = Page(out.read_text())
    assert len(page.find("p", class_="verdict")) == 1
    unread = page.find("section", class_="unread")[0].text
    for name, reason in named.items():
        assert re.search(rf"{tmp_path / name}\b.*{reason}", errors)
        assert str(tmp_path / name) in unread
    assert main(["report", *folders[1:], "--out", str(tmp_path / "none.html")]) == 2
    assert not (tmp_path / "none.html").exists()
    assert "no results that can be shown" in capsys.readouterr().err


def test_a_folder_of_results_stands_for_all_in_it(tmp_path):
    for name in ("digits", "bench-384-cpu"):
        (tmp_path / f"{name}.json").write_text((RESULTS / f"{name}.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text((RESULTS / "transfer-small.json").read_text())
    (tmp_path / "run" / "settings.json").write_text("{}")
    report = write_report([tmp_path], tmp_path / "report.html")
    assert report.shown == tuple(str(tmp_path / name) for name in ("bench-384-cpu.json", "digits.json", "run"))
    assert not report.unread


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["{tmp}/nowhere"], "nowhere) does not exist"),
        (["{results}/digits.json", "--out", "{tmp}/there.html"], "there.html) exists"),
        (["{results}/digits.json", "--out", "{tmp}"], "is a folder"),
    ],
)
def test_what_cannot_be_written_is_one_line(arguments, fact, tmp_path, capsys):
    (tmp_path / "there.html").write_text("mine")
    assert main(["report", *(a.format(tmp=tmp_path, results=RESULTS) for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert fact in line
    assert (tmp_path / "there.html").read_text() == "mine"


def test_merge_maps_are_in_the_page(tmp_path):
    from PIL import Image

    merger = {"name": "blocks.5.merger", "after": 6, "reducer": "PatchMerger", "num_tokens": 2}
    found = {"after": 6, "shares": [0.6, 0.4], "effective_patches": [3.0, 2.0], "unused": 0.25, "sets": False}
    statistics = {"after": 6, "images": 100, "effective_rank": 1.5, "steadiness": [0.9, 0.8], **found}
    results = {
        "study": "show", "model": "runs/vit/model", "mergers": [merger],
        "images": [{"name": "a/cat.png", "label": "cat", "mergers": [found]}],
        "unread": [{"name": "b.png", "reason": "not an image"}], "statistics": [statistics],
        "command": "patchmerger show runs/vit a/cat.png", "settings": {"seed": 0}, "environment": {"device": "cpu"},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    write_report([tmp_path], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert [image.attributes["alt"] for image in page.find("img")] == [
        "Merge maps, a row an image, a column a token", "Merge maps, of cat"
    ]  # fmt: skip
    assert "1.5 different mixtures" in page.find("p", class_="verdict")[0].text
    assert "b.png (not an image)" in page.find("div", class_="missing")[0].text


def test_all_committed_results_are_shown(tmp_path):
    report = write_report([RESULTS], tmp_path / "report.html")
    assert (len(report.shown), report.unread) == (len(list(RESULTS.glob("*.json"))), ())
    page = Page(report.path.read_text())
    assert "1,639 architectures" in page.find("main")[0].text
    pictures = [path for path in RESULTS.glob("*.png") if path.stem.startswith(("merge-maps-", "patterns-"))]
    assert len(page.find("img")) == len(pictures)


def test_names_cannot_break_the_page():
    results = results_of("digits")
    evil = "</script><img src=x onerror=alert(1)>"
    results["settings"]["data"]["source"] = evil
    results["variants"][evil] = results["variants"].pop("merged")
    for mode in results["speed"].values():
        next(t for t in mode["timings"] if t["name"] == "merged")["name"] = evil
    page = Page(render([section(results)], title=evil))
    assert not page.find("img")
    assert page.find("h1")[0].text == evil
    assert any(evil in row.text for row in page.find("tr"))
    assert not any("<img" in trace["name"] for chart in page.charts.values() for trace in chart["data"])


def test_colours_are_told_from_a_dark_page():
    for colour in variant_colours(["plain", "merged", "located", "paper", "average", "shallow", *"abcd"]).values():
        assert contrast(on_dark(colour.removeprefix("#")), "171a20") >= 5
    study = section(results_of("accelerate-all-vit-small-cifar10"))
    colours = {trace["name"]: trace["marker"]["color"] for trace in study.charts[-1].data}
    in_table = {row[0].text: row[0].colour for row in study.tables[0].rows}
    assert {name: in_table[name] for name in colours if name != "plain"} == {
        name: colour for name, colour in colours.items() if name != "plain"
    }
    assert len(set(colours.values())) == len(colours)
    assert colours["located queries"] == f"@{variant_colours(['located'])['located'].removeprefix('#')}"
    assert contrast("000000", "ffffff") == pytest.approx(21)


def test_no_torch_is_needed(tmp_path):
    code = (
        "import sys; from patchmerger.cli import main\n"
        f"main(['report', {str(RESULTS / 'digits.json')!r}, '--out', {str(tmp_path / 'report.html')!r}])\n"
        "assert not {'torch', 'timm', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
