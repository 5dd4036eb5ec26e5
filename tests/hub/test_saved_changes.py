"""The mergers of a config, as they are written and read."""

import json

import pytest
import timm
import torch

from conftest import SIZE, make_images, make_vit
from hub.helpers import change_config, read_config
from patchmerger.hub import describe, load, save
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")


def make_rope() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_small_patch16_dinov3", **{**SIZE, "img_size": 48}).eval()


def test_what_is_written(saved):
    ours = read_config(saved)["patchmerger"]
    assert ours == {
        "schema_version": 1,
        "mergers": [
            {
                "after": 2,
                "num_tokens": 4,
                "prefix": "keep",
                "reducer": "patchmerger",
                "norm": "scores",
                "scale": 1.0,
                "prior": "grid",
                "num_heads": None,
                "eps": 1e-6,
                "positions": None,
                "arguments": None,
            }
        ],
    }


def test_a_plain_folder_has_nothing_of_ours(folder):
    save(make_vit(), folder)
    assert "patchmerger" not in read_config(folder)
    change_config(folder, patchmerger={"schema_version": 1, "mergers": []})
    assert torch.equal(load(folder)(make_images()), make_vit()(make_images()))


@pytest.mark.parametrize("positions", ["centroid", "drop"])
def test_positions(positions, folder):
    model = insert(make_rope(), 4, positions=positions)
    save(model, folder)
    ours = read_config(folder)["patchmerger"]
    assert ours["mergers"][0]["positions"] == positions
    again = load(folder)
    images = make_images(size=48)
    assert torch.equal(again(images), model(images))
    assert mergers(again)[0].positions == describe(folder).mergers[0].positions == positions


def test_positions_by_default_are_written_down(folder):
    save(insert(make_rope(), 4), folder)
    assert describe(folder).mergers[0].positions == "centroid", "another default later must not change a saved model"


def test_positions_that_the_model_has_no_use_for(saved):
    ours = read_config(saved)["patchmerger"]
    ours["mergers"][0]["positions"] = "centroid"
    change_config(saved, patchmerger=ours)
    with pytest.raises(ValueError, match=r"positions \('centroid'\) means nothing here"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": 4}, r"after \(4\) must be a block from 1 to 3"),
        ({"num_tokens": 99}, r"num_tokens \(99\) after block 2 is more than the 16 tokens that arrive"),
        ({"prefix": "merge"}, r"prefix \('merge'\) would merge tokens that are needed"),
        ({"norm": "batch"}, r"mergers\.0\.norm"),
        ({"after": "2"}, r"mergers\.0\.after"),
        ({"norm": None}, r"norm \(None\)"),
        ({"reducer": "average", "norm": None, "scale": None}, r"unexpected weights: blocks\.1\.merger\.gain"),
    ],
)
def test_mergers_that_the_model_cannot_take(saved, changes, message):
    config = json.loads((saved / "config.json").read_text())
    config["patchmerger"]["mergers"][0].update(changes)
    change_config(saved, **config)
    with pytest.raises(ValueError, match=message):
        load(saved)
