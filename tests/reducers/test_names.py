"""Reducers by name: in insert, in settings, and saved."""

import importlib.util

import pytest
import torch

from conftest import make_images, make_vit
from hosts.tiny import make_model
from patchmerger.hub import load, save
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers
from patchmerger.models.settings import MergeSettings
from patchmerger.reducers.build import all_work_inside
from patchmerger.reducers.names import (
    METHODS,
    ReducerName,
    check_reducer_name,
    make_reducer,
    method_of,
    placement_in_words,
)
from patchmerger.reducers.random_drop import RandomDrop

pytestmark = pytest.mark.usefixtures("one_thread")


def available() -> list[str]:
    """The methods whose file is there."""
    found = []
    for name, method in METHODS.items():
        if importlib.util.find_spec(f"patchmerger.{method.path}".rpartition(".")[0]) is not None:
            found.append(name)
    return found


def test_names_are_those_of_the_type():
    assert tuple(METHODS) == ReducerName.__args__


@pytest.mark.parametrize("name", available())
def test_the_method_of_a_reducer_is_told(name):
    assert method_of(make_reducer(name, 4, dim=32, num_patches=16, grid=(4, 4))) == name


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"reducer \('tom'\) must be one of 'patchmerger', .*did you mean 'tome'"):
        insert(make_vit(), 4, reducer="tom")
    with pytest.raises(ValueError, match=r"merge\.reducer \('topk2'\) must be one of"):
        MergeSettings(reducer="topk2")
    with pytest.raises(ValueError, match="sed is no option of the reducer 'random', which has seed"):
        make_reducer("random", 4, dim=32, sed=1)
    check_reducer_name("random")


@pytest.mark.parametrize("keep_rate", [0.5, 0.7, 1])
def test_keep_rate(keep_rate):
    model = insert(make_vit(), keep_rate=keep_rate, after=[3, 1], reducer="random")
    assert [model.blocks[i].merger.num_tokens for i in (0, 2)] == [int(16 * keep_rate), int(16 * keep_rate**2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 0.0}, r"keep_rate \(0\.0\) must be above 0"),
        ({"keep_rate": 1.5}, r"keep_rate \(1\.5\) must be above 0 and at most 1"),
        ({"keep_rate": 0.5, "num_tokens": 4}, r"num_tokens \(4\) and keep_rate \(0\.5\) both"),
        ({"keep_rate": 0.05}, r"keep_rate \(0\.05\) leaves no token of 16 after 1"),
    ],
)
def test_keep_rates_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        insert(make_vit(), **arguments, reducer="random")


def test_keep_rate_of_images_of_any_size():
    """It counts on the images that the model was made for."""
    for model in (make_vit(dynamic_img_size=True), make_model("DINOv3ViTModel")):
        insert(model, keep_rate=0.5, after=[1, 3], reducer="random")
        assert [merger.num_tokens for merger in mergers(model)] == [8, 4]


def test_methods_say_where_they_work():
    for name in METHODS:
        assert METHODS[name].inside == all_work_inside(name)
    assert placement_in_words("tome", 8, 5) == "ToMe to 8 tokens inside block 6"
    assert placement_in_words("dpcknn", 8, 5) == "DPC-KNN to 8 tokens after block 5"


def test_random_tokens_are_others_in_training_and_always_the_same_in_evaluation():
    x = torch.arange(16.0).expand(3, -1)[..., None].clone()
    drop = RandomDrop(5).eval()
    kept, weights = drop(x, return_weights=True)
    assert torch.equal(weights @ x, kept)
    assert torch.equal(kept, RandomDrop(5).eval()(x))
    assert torch.equal(kept[0], kept[1])
    assert kept[0].flatten().tolist() == sorted(set(kept[0].flatten().tolist()))
    assert not torch.equal(kept, RandomDrop(5, seed=1).eval()(x))
    assert kept[0].flatten().tolist() == [4.0, 6.0, 8.0, 10.0, 13.0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        varied = drop.train()(x)
    assert len(torch.unique(varied, dim=0)) == 3
    assert torch.equal(RandomDrop(16)(x), x)


@pytest.mark.parametrize("name", [name for name in available() if name != "patchmerger"])
def test_saved_and_loaded(name, tmp_path):
    model = insert(make_vit(), [8, 4], after=[1, 3], reducer=name)
    with torch.no_grad():
        for merger in (model.blocks[0].merger, model.blocks[2].merger):
            for parameter in merger.parameters():
                parameter.normal_(std=0.1)
    save(model, tmp_path / "model")
    again, images = load(tmp_path / "model"), make_images()
    assert method_of(again.blocks[0].merger) == name
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
