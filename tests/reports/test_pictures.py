"""Pictures of the committed results: nothing is written outside of them, and no legend covers the data."""

import json
from pathlib import Path

import matplotlib as mpl
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

from patchmerger.reports.parts import numbers
from patchmerger.reports.pictures import accelerate_study, compare, fonts, style, sweep, transfer
from patchmerger.studies.methods import known_methods

RESULTS = Path(__file__).parents[2] / "results"
DRAWN = {
    "merger-cifar10-small": compare.draw,
    "cifar10-small": compare.draw,
    "sweep-cifar10-small": sweep.draw,
    "transfer-small": transfer.draw,
    "accelerate-vit-small-cifar10": accelerate_study.draw,
    "reducers-keep-rates-vit-small-cifar10-70": accelerate_study.draw,
}


@pytest.mark.parametrize(("name", "draw"), DRAWN.items(), ids=list(DRAWN))
def test_everything_lies_within_the_picture_and_the_legend_outside_of_the_panels(name, draw, tmp_path, monkeypatch):
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))[1])
    draw(json.loads((RESULTS / f"{name}.json").read_text()), tmp_path / "picture.png")
    [figure] = figures
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width <= 2300
        assert len(picture.convert("RGB").resize((64, 32)).getcolors(64 * 32)) > 10
    page = figure.bbox.padded(2)
    [legend] = figure.legends
    texts = [t for axes in figure.axes for t in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)]
    for text in (*texts, *legend.get_texts(), legend.get_title(), figure._supxlabel):
        box = text.get_window_extent()
        assert not text.get_text() or (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)), text
    box = legend.get_window_extent()
    for axes in figure.axes:
        assert not mpl.transforms.Bbox.intersection(box, axes.get_window_extent())


def test_many_methods_at_one_speed_up_are_ranked(tmp_path, monkeypatch):
    figures: list[Figure] = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), savefig(self, *a, **k))[1])
    results = json.loads((RESULTS / "reducers-vit-small-tiny-imagenet.json").read_text())
    accelerate_study.draw(results, tmp_path / "picture.png")
    recovered, without, speed = figures[0].axes
    names = [label.get_text() for label in recovered.get_yticklabels()]
    assert len(names) == len(results["settings"]["methods"])
    accuracy = {numbers.method_text(r["method"]): 100 * r["accuracy"] for r in results["curves"] if r["epochs"]}
    assert names == sorted(accuracy, key=accuracy.get)
    markers = [line for line in recovered.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in markers] == pytest.approx([accuracy[name] for name in names])
    assert all(axes.get_title("left") for axes in (without, speed))


def test_known_variants_keep_their_colour_and_no_two_share_one():
    names = ["plain", "merged", "located", "paper", "average", "shallow", "own", "another"]
    colours = style.variant_colours(names)
    assert len(set(colours.values())) == len(set(style.variant_markers(names).values())) == len(names)
    assert style.variant_colours(["own", "merged"])["merged"] == colours["merged"]
    assert not {*style.ordered_colours(6)} & {*colours.values()}


def test_no_two_methods_look_alike():
    methods = [name for name in known_methods() if name != "plain"]
    looks = accelerate_study.method_looks(methods)
    drawn = {(look["color"], look["marker"], look["ls"]) for look in looks.values()}
    assert len(drawn) == len(looks) == len(methods)


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    name = r"price $5_^$ and $a_{b"
    with style.picture(tmp_path / "a.png", columns=1, note=name, title=name, also_svg=True) as (figure, [axes]):
        axes.set_title(name)
        axes.plot([0, 1], label=name)
        style.shared_legend(figure, *axes.get_legend_handles_labels(), title=name)
    written = (tmp_path / "a.svg").read_text()
    assert written.count(f">{name}</text>") == 5


def draw_names(path, names=("猫", "犬")):
    with style.picture(path, columns=1, note=f"note {names[0]}", title=names[0], also_svg=True) as (_, [axes]):
        axes.bar(list(names), [1, 2])  # its names are texts only once it is drawn
        style.head(axes, "plain letters")


def test_characters_that_no_font_has_are_named_once(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "_installed", list)
    monkeypatch.setattr(fonts, "_named", set())
    with pytest.warns(UserWarning, match=r"characters 犬 猫, .*: install Noto Sans CJK") as told:
        draw_names(tmp_path / "a.png")
    assert len(told) == 1
    draw_names(tmp_path / "b.png")


def test_a_font_of_the_system_has_what_the_default_lacks(tmp_path, monkeypatch):
    family, glyphs = "Noto Sans CJK of a test", [".notdef", "cat", "dog"]
    font = FontBuilder(1000)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord("猫"): "cat", ord("犬"): "dog"})
    font.setupGlyf({name: Glyph() for name in glyphs})
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "font.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "font.ttf")
    draw_names(tmp_path / "a.png")  # any warning is an error
    written = (tmp_path / "a.svg").read_text().splitlines()
    with_font = [line.rsplit("</text>")[0].rsplit(">")[-1] for line in written if family in line]
    assert sorted(with_font) == ["note 猫", "犬", "猫", "猫"]
