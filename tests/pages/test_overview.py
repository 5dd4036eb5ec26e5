"""The first picture of the README, drawn again from copies of the committed results."""

import json
import shutil
from pathlib import Path

from PIL import Image
from tools import overview

RESULTS = Path(__file__).parents[2] / "results"


def test_the_first_picture_is_drawn_from_committed_results(tmp_path):
    maps = tmp_path / overview.MAPS
    for name in (overview.MAPS, maps.with_suffix(".safetensors").name, overview.STUDY):
        shutil.copy(RESULTS / name, tmp_path)
    with Image.open(overview.draw_overview(tmp_path)) as picture, Image.open(RESULTS / overview.FILE) as committed:
        assert picture.size == committed.size
    # tokens in the corners show the background: those in the middle are drawn, and without places those that lead
    results = json.loads(maps.read_text())
    merger = results["mergers"][-1]
    merger |= {"num_tokens": 5, "centers": [[0.1, 0.1], [0.5, 0.4], [0.4, 0.6], [0.6, 0.5], [0.5, 0.7]]}
    assert overview._chosen(results, range(2)) == [1, 2, 3, 4]
    merger["centers"] = None
    for image in results["images"]:
        image["mergers"][-1]["shares"] = [0.4, 0.1, 0.2, 0.15, 0.15]
    assert overview._chosen(results, range(2)) == [0, 2, 3, 4]
