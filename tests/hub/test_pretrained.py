"""Weights made without a merger load into a merged model with only the merger's missing, and the other way round."""

import pytest
from torch import nn

from conftest import make_vit
from hub.helpers import make_torchvision, make_transformers, run
from patchmerger.hub import load, save
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread", "quiet_transformers")

MODELS = {
    "timm": make_vit,
    "timm, distilled": lambda: make_vit("distilled"),
    "torchvision": make_torchvision,
    "transformers": make_transformers,
    "transformers, registers": lambda: make_transformers("Dinov2WithRegistersForImageClassification"),
    "transformers, RoPE": lambda: make_transformers("DINOv3ViTModel", num_register_tokens=2, image_size=48),
}


@pytest.fixture(params=MODELS)
def plain(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def merger_names(model: nn.Module) -> set[str]:
    (merger,) = mergers(model)
    return {f"{merger.name}.{name}" for name in merger.module.state_dict()}


def test_plain_weights_in_a_merged_model(plain):
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merged = insert(plain, 4)
    found = merged.load_state_dict(weights, strict=False)
    assert set(found.missing_keys) == merger_names(merged)
    assert all(".merger." in name for name in found.missing_keys)
    assert found.unexpected_keys == []


def test_merged_weights_in_a_plain_model(plain):
    merged = insert(plain, 4)
    names, weights = merger_names(merged), merged.state_dict()
    found = remove(merged).load_state_dict(weights, strict=False)
    assert set(found.unexpected_keys) == names
    assert found.missing_keys == []


def test_a_merger_goes_into_a_loaded_model(plain, folder, tmp_path):
    merged = insert(load(save(plain, folder)), 4)
    again = load(save(merged, tmp_path / "merged"))
    assert run(again).equal(run(merged))
    assert set(again.state_dict()) - set(plain.state_dict()) == merger_names(merged)
