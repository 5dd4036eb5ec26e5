"""The pictures of merge maps: every pixel has the colour of the patch that it lies in, and every part is drawn."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_vit
from maps.constructed import picking
from patchmerger import insert, preset, save
from patchmerger.data import Preprocessing
from patchmerger.maps import ShowSettings, read_shown, show
from patchmerger.reducers import AveragePool
from patchmerger.reports.pictures.map_pixels import (
    borders,
    enlarge,
    overlay,
    segmentation,
    sets,
    taken_overlay,
    token_colours,
)
from patchmerger.reports.show import picture_names, report

pytestmark = pytest.mark.usefixtures("one_thread")

HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, "bilinear")


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32), (4, 4)), ((16, 64), (2, 8)), ((30, 50), (3, 5)), ((7, 9), (2, 4))]
)
def test_each_pixel_is_of_the_patch_that_it_lies_in(size, grid):
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    enlarged = enlarge(cells, size)
    for y in range(size[0]):
        for x in range(size[1]):
            assert enlarged[y, x] == cells[y * grid[0] // size[0], x * grid[1] // size[1]]


def test_a_patch_that_is_taken_is_light_and_the_others_are_dark():
    view, weights = np.full((16, 32, 3), 0.5), np.zeros((2, 4))
    weights[1, 2] = 0.7
    pixels = overlay(view, weights)
    inside = np.zeros((16, 32), dtype=bool)
    inside[8:16, 16:24] = True
    lightest, darkest = (np.array(mpl.colormaps["inferno"](value)[:3]) for value in (1.0, 0.0))
    np.testing.assert_allclose(pixels[inside], np.broadcast_to(0.2 * 0.5 + 0.8 * lightest, (64, 3)))
    np.testing.assert_allclose(pixels[~inside], np.broadcast_to(0.75 * 0.5 + 0.25 * darkest, (448, 3)))


def test_the_segmentation_has_the_colour_of_the_token_that_leads():
    view, leading = np.full((8, 12, 3), 0.5), np.array([[0, 1, 1], [2, -1, 0]])
    colours = token_colours(3)
    pixels = segmentation(view, leading, colours)
    for row in range(2):
        for column in range(3):
            block = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(-1, 3)
            token = leading[row, column]
            ink = np.array(mpl.colors.to_rgb(colours[token]))
            wanted = 0.25 * 0.5 + 0.75 * 0.1 if token < 0 else 0.4 * 0.5 + 0.6 * ink
            np.testing.assert_allclose(block, np.broadcast_to(wanted, block.shape))


def test_borders_run_between_patches_of_different_tokens():
    lines = borders(np.array([[0, 1], [0, 0]]), (8, 8))
    assert sorted(lines) == [((3.5, -0.5), (3.5, 3.5)), ((3.5, 3.5), (7.5, 3.5))]
    assert borders(np.zeros((3, 3)), (9, 9)) == []


def test_sets_are_kept_merged_and_dropped():
    view = np.random.default_rng(0).random((4, 6, 3))
    pixels = sets(view, np.array([[0, 1, 1], [-1, 2, 1]]))
    np.testing.assert_array_equal(pixels[:2, :2], view[:2, :2])
    merged = np.concatenate([view[:2, 2:].reshape(-1, 3), view[2:, 4:].reshape(-1, 3)]).mean(axis=0)
    np.testing.assert_allclose(pixels[0, 3], merged)
    np.testing.assert_allclose(pixels[3, 5], merged)
    assert pixels[2:, :2].min() > 0.85


def test_what_is_taken_ends_at_twice_an_equal_share():
    view = np.zeros((2, 4, 3))
    pixels = taken_overlay(view, np.array([[2.0, 5.0]]))
    np.testing.assert_array_equal(pixels[:, :2], pixels[:, 2:])


@pytest.fixture
def photos(tmp_path):
    paths = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        Image.fromarray(pixels).save(folder / "same name.png")
        paths.append(folder / "same name.png")
    return paths


def drawn(model, photos, tmp_path, *, grid=False, data=None):
    folder = save(model, tmp_path / "model", preprocessing=HALF)
    results = show(folder, photos, data, ShowSettings(examples=1, limit=8), out=tmp_path / "out")
    assert report(results, read_shown(tmp_path / "out")[1], grid=grid) == 0
    return results, sorted(path.name for path in (tmp_path / "out").glob("*.png"))


def test_two_mergers_stand_below_each_other(photos, tmp_path):
    model = picking([[(0, 0)], [(1, 1)], [(2, 2)]], [[(1, 1)], [(2, 2)]])
    _, files = drawn(model, photos[:1], tmp_path)
    assert files == ["same-name.png"]
    svg = (tmp_path / "out" / "same-name.svg").read_text()
    for text in ("after block 2", "1: leads 6%, takes 1.0", "composed back to the patches"):
        assert text in svg


def test_images_of_one_name_have_files_of_their_own():
    images = [{"name": name} for name in ("a/cat.png", "b/cat.jpg", "grid.png", "c/Ä b*.png", "..")]
    assert picture_names({"images": images}) == ["cat.png", "cat-2.png", "grid-2.png", "Ä-b-.png", "image.png"]


def test_no_name_of_a_picture_is_an_option_or_hidden():
    images = [{"name": name} for name in ("a/-rf.png", "b/ rf.jpg", ".hidden.png", "--.png", "a-b.png")]
    assert picture_names({"images": images}) == ["rf.png", "rf-2.png", "hidden.png", "image.png", "a-b.png"]


def test_located_queries_and_a_dataset(photos, tmp_path):
    model = insert(make_vit(), 4, **preset("located", 32))
    _, files = drawn(model, photos[:1], tmp_path, grid=True, data="digits")
    assert files == ["grid.png", "statistics.png"]
    svg = (tmp_path / "out" / "statistics.svg").read_text()
    assert "ellipse: the learned place" in svg
    assert "effective rank" in svg


def test_runs_of_patches_are_drawn_as_sets(photos, tmp_path, capsys):
    model = insert(make_vit(), 4, reducer=AveragePool(4))
    results, _ = drawn(model, photos[:1], tmp_path)
    assert results["images"][0]["mergers"][0]["sets"]
    assert "0 kept, 4 merged" in (tmp_path / "out" / "same-name.svg").read_text()
    assert "AveragePool after block 2: 4 tokens" in capsys.readouterr().out


def test_the_same_maps_give_the_same_files(photos, tmp_path):
    torch.manual_seed(0)
    results, _ = drawn(insert(make_vit(), 4), photos[:1], tmp_path)
    files = [tmp_path / "out" / name for name in ("same-name.png", "same-name.svg")]
    before = [file.read_bytes() for file in files]
    report(results, read_shown(tmp_path / "out")[1])
    assert [file.read_bytes() for file in files] == before
