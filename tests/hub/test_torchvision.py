"""torchvision's Vision Transformer, whose arguments are read off the model."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from hub.helpers import assert_round_trip, change_config, make_torchvision, read_config
from patchmerger.data import Preprocessing
from patchmerger.hub import SavedConfig, SavedMerger, describe, load, save
from patchmerger.hub.torchvision import arguments_of
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")

OTHER = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bicubic", "squash")
STEM = [ConvStemConfig(8, 3, 2), ConvStemConfig(16, 3, 2), ConvStemConfig(16, 3, 2)]


@pytest.mark.parametrize("places", [(), (1, 3)], ids=["plain", "two mergers"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"representation_size": 24}, {"conv_stem_configs": STEM}, {"dropout": 0.1, "attention_dropout": 0.2}],
    ids=["patches", "representation", "convolutional stem", "dropout"],
)
def test_round_trip(arguments, places, folder):
    model = make_torchvision(**arguments)
    if places:
        insert(model, (9, 5)[: len(places)], after=places)
    again = assert_round_trip(model, folder)
    assert [found.after for found in mergers(again)] == list(places)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_the_arguments_of_torchvision_s_own_names(name):
    with torch.device("meta"):
        model = models.get_model(name)
        arguments = arguments_of(model)
        assert (arguments.pop("norm_eps"), arguments.pop("conv_stem")) == (1e-6, None)
        again = VisionTransformer(**arguments)
    assert repr(again) == repr(model)
    assert {k: t.shape for k, t in again.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}
    heads = {layer.num_heads for layer in (*again.encoder.layers, *model.encoder.layers)}
    assert len(heads) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype, folder):
    again = load(save(insert(make_torchvision(), 4).to(dtype), folder))
    assert {tensor.dtype for tensor in again.state_dict().values()} == {dtype}


def test_a_new_classifier(folder):
    model = make_torchvision()
    model.heads.head = nn.Linear(32, 3)
    assert_round_trip(insert(model, 4), folder)
    assert describe(folder).num_classes == 3


def test_another_norm(folder):
    model = make_torchvision(norm_layer=nn.LayerNorm)
    assert_round_trip(model, folder)
    assert read_config(folder)["model_args"]["norm_eps"] == 1e-5


def test_the_config(folder):
    names = ["ant", "bee", "crane", "crane", "été"]
    save(insert(make_torchvision(), 4), folder, class_names=names, preprocessing=OTHER)
    assert describe(folder) == SavedConfig(
        library="torchvision",
        architecture="VisionTransformer",
        num_classes=5,
        input_size=(3, 32, 32),
        preprocessing=OTHER,
        class_names=tuple(names),
        mergers=(SavedMerger(2, 4, "keep", "patchmerger", norm="scores", scale=1.0, prior="grid", eps=1e-6),),
    )


def test_the_defaults_are_those_of_torchvision_s_weights(folder):
    saved = describe(save(make_torchvision(), folder)).preprocessing
    preset = models.ViT_B_16_Weights.IMAGENET1K_V1.transforms()
    assert (list(saved.mean), list(saved.std)) == (preset.mean, preset.std)
    assert saved.crop_pct == preset.crop_size[0] / preset.resize_size[0]
    assert saved.interpolation == preset.interpolation.value


def replaced_heads(model: nn.Module) -> None:
    model.heads = nn.Linear(32, 3)


def no_head(model: nn.Module) -> None:
    model.heads.head = nn.Identity()


def other_activation(model: nn.Module) -> None:
    model.encoder.layers[3].mlp[1] = nn.ReLU()


def one_channel(model: nn.Module) -> None:
    model.conv_proj = nn.Conv2d(1, 32, 8, 8)


def other_norm(model: nn.Module) -> None:
    model.encoder.layers[1].ln_1 = nn.LayerNorm(32, eps=1e-3)


def other_forward(model: nn.Module) -> None:
    forward = model.encoder.forward
    model.encoder.forward = lambda x: 1.01 * forward(x)
    nn.init.zeros_(model.heads.head.weight)  # as torchvision makes it: all outputs are zero


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replaced_heads,
            r"model\.heads\.head is a NoneType, not the classifier .* in model\.heads\.head = ",
        ),
        (no_head, r"model\.heads\.head is a Identity"),
        (other_activation, r"a GELU as encoder\.layers\.encoder_layer_3\.mlp\.1, not a ReLU; only what VisionTransf"),
        (one_channel, r"other shapes: conv_proj\.weight"),
        (other_norm, r"ln_1\.eps = 1e-06, not 0\.001"),
        (other_forward, r"other outputs \(encoder differs by"),
    ],
)
def test_changes_by_hand_are_refused(folder, change, message):
    model = make_torchvision()
    change(model)
    with pytest.raises(ValueError, match=message):
        save(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_other_models_of_torchvision(folder):
    with pytest.raises(ValueError, match=r"model \(SqueezeNet\) is of torchvision, of which only VisionTransformer"):
        save(models.squeezenet1_1(), folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names has 2 names, but the model has 5 classes"),
        ({"preprocessing": Preprocessing((0.5,), (0.5,))}, r"a mean of 1 values .* 3 channels"),
        ({"model_args": {"depth": 3}}, r"model_args .* is for models of timm; torchvision's are read off the model"),
        ({"image_processor": object()}, r"image_processor .* is for models of transformers; give preprocessing"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError, match=message):
        save(make_torchvision(), folder, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "SwinTransformer"}, "names the architecture 'SwinTransformer'; of torchvision only"),
        ({"model_args": {"image_size": 32}}, r"cannot make a VisionTransformer with the model_args in .*: 'norm_eps'"),
        ({"model_args": None}, r"cannot make a VisionTransformer with the model_args in .*config\.json"),
        ({"patchmerger": {"schema_version": 9}}, "has schema_version 9, but this patchmerger knows up to 1"),
    ],
)
def test_broken_configs(folder, changes, message):
    save(insert(make_torchvision(), 4), folder)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_size_that_does_not_fit_the_weights(folder):
    save(insert(make_torchvision(), 4), folder)
    change_config(folder, model_args={**read_config(folder)["model_args"], "mlp_dim": 128})
    with pytest.raises(ValueError, match=r"model\.safetensors is of another model than its config\.json: other shapes"):
        load(folder)
