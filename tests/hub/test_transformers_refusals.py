"""Folders of transformers' models that are not what their configs say, and models that cannot be saved, are refused."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from hub.families import make, make_merged
from hub.helpers import change_config, make_towers, run
from patchmerger.data import Preprocessing
from patchmerger.hosts import find_host
from patchmerger.hub import load, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread", "quiet_transformers")
HALF = Preprocessing((0.5,) * 3, (0.5,) * 3)


# Weights that are not those of the config


def test_save_pretrained_alone_is_refused(folder):
    make_merged().save_pretrained(folder)
    with pytest.raises(ValueError, match=r"unexpected weights: vit\.\S+\.1\.merger\.gain"):
        load(folder)


def test_weights_of_another_model(folder, tmp_path):
    save(make_merged(), folder)
    weights = folder / "model.safetensors"

    def swap(model: nn.Module, name: str) -> None:
        weights.write_bytes((save(model, tmp_path / name) / "model.safetensors").read_bytes())

    swap(make_merged("ViTForImageClassification", 5), "tokens")
    with pytest.raises(ValueError, match=r"other shapes: vit\.\S+\.1\.merger\.gain \(5,\) for \(4,\)"):
        load(folder)
    swap(make(), "plain")
    with pytest.raises(ValueError, match=r"missing weights: vit\.\S+\.1\.merger\.gain, "):
        load(folder)
    swap(make_merged("ViTForImageClassification", 4, after=3), "place")
    with pytest.raises(ValueError, match=r"missing weights: vit\.\S+\.1\.merger\.gain"):
        load(folder)
    swap(make_merged("ViTForImageClassification", (4, 4), after=(2, 3)), "two")
    with pytest.raises(ValueError, match=r"unexpected weights: vit\.encoder\.layer\.2\.merger\.gain"):
        load(folder)
    swap(insert(make("ViTForImageClassification", num_labels=7), 4), "classes")
    with pytest.raises(ValueError, match=r"model\.safetensors is of another .*: classifier\.bias \(7,\) for \(5,\)"):
        load(folder)
    swap(insert(make("ViTForImageClassification", num_hidden_layers=3), 4, after=2), "depth")
    with pytest.raises(ValueError, match=r"missing weights: vit\.\S+\.3\..* and \d+ more"):
        load(folder)


def test_a_pickle_and_the_way_out(folder, tmp_path):
    model = make()
    save(model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle.*from_pretrained, then patchmerger\.save"):
        load(folder)
    save(transformers.ViTForImageClassification.from_pretrained(folder), tmp_path / "converted")
    assert torch.equal(run(load(tmp_path / "converted")), run(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["ViT7Model"], "transformers_version": "7.1"},
            r"'ViT7Model', which .* \(written with 7\.1\)",
        ),
        ({"architectures": ["AutoModel"]}, "names the architecture 'AutoModel', which transformers .* does not have"),
        ({"architectures": None}, r"does not name its class under 'architectures' \(None\)"),
        ({"hidden_size": "wide"}, r"cannot make a ViTForImageClassification from .*config\.json"),
        ({"hidden_size": 64}, "other shapes: "),
        ({"patchmerger": {"schema_version": 9}}, "has schema_version 9, but this patchmerger knows up to 1"),
    ],
)
def test_broken_configs(folder, changes, message):
    save(make_merged(), folder)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


# What cannot be saved


def test_what_no_config_says_is_refused(folder):
    model = transformers.ViTModel(make().config, add_pooling_layer=False)
    with pytest.raises(ValueError, match=r"missing weights: pooler\.dense\.bias, .*; change model\.config along"):
        save(model, folder)


def other_activation(model: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if "GELU" in type(module).__name__)
    model.set_submodule(name, nn.ReLU())


def other_head(model: nn.Module) -> None:
    model.classifier = nn.Linear(32, 9)


def other_eps(model: nn.Module) -> None:
    model.vit.layernorm.eps = 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_activation, r"not a ReLU; change model\.config along with the model"),
        (other_head, r"other shapes: classifier\.bias \(9,\) for \(5,\)"),
        (other_eps, r"vit\.layernorm\.eps = 1e-12, not 0\.001"),
    ],
)
def test_changes_by_hand_are_refused(folder, change, message):
    model = make_merged()
    change(model)
    with pytest.raises(ValueError, match=message):
        save(model, folder)
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []


class OwnViT(transformers.ViTForImageClassification):
    pass


def mismatched_towers() -> nn.Module:
    model = make_towers()
    model.text_projection = nn.Linear(32, 3, bias=False)
    return model


def with_adapters() -> nn.Module:
    model = make()
    model._hf_peft_config_loaded = True
    return model


def quantised() -> nn.Module:
    model = make()
    model.config.quantization_config = {"bits": 4}
    return model


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: OwnViT(make().config), r"model \(OwnViT\) is not of timm, torchvision or transformers"),
        (lambda: find_host(make()).blocks[0], r"model \(ViTLayer\) is a part of a model, which no config names"),
        (mismatched_towers, r"other shapes: text_projection.weight"),
        (with_adapters, r"has adapters \(PEFT\)"),
        (quantised, "is quantised, and cannot be saved so"),
    ],
)
def test_what_cannot_be_saved(folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        save(wrong(), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ViTForImageClassification", {"class_names": ["a"]}, "class_names has 1 names, but the model has 5 classes"),
        ("SiglipVisionModel", {"class_names": ["a"]}, "class_names has 1 names, but the model has 0 classes"),
        (
            "ViTForImageClassification",
            {"model_args": {"depth": 3}},
            r"model_args \({'depth': 3}\) is for models of timm",
        ),
        ("ViTForImageClassification", {"image_processor": nn.Identity()}, r"image_processor \(Identity\) must be"),
        (
            "ViTForImageClassification",
            {"image_processor": transformers.ViTImageProcessor(), "preprocessing": HALF},
            "preprocessing and image_processor are both given: give one",
        ),
        (
            "ASTForAudioClassification",
            {"preprocessing": HALF},
            r"images have no one size \(None\): give image_processor",
        ),
    ],
)
def test_options_that_do_not_fit(folder, name, options, message):
    with pytest.raises(ValueError, match=message):
        save(make(name), folder, **options)
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []
