"""Someone's own weights: the usual forms are loaded where that is certain, the others refused by name and cure."""

import pytest
import timm
import torch

from patchmerger.hub.checkpoints import build_from_weights
from patchmerger.hub.saved_model import load
from patchmerger.hub.saving import save
from patchmerger.runs.tensors import read_tensors, write_tensors

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "vit_tiny_patch16_224"
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
UNSIZED = {name: value for name, value in SIZE.items() if name != "img_size"}


def make(name=NAME, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **{"num_classes": 5, **SIZE, **changes}).eval()


def build(weights, tmp_path, name=NAME, **args):
    return build_from_weights(weights, name, args or SIZE, tmp_path / "own.safetensors")


def assert_same(built, model, size=32):
    images = torch.randn(2, 3, size, size)
    assert torch.equal(built(images), model(images))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "module.model._orig_mod."]
)
def test_what_wrappers_put_before_the_names_is_left_out(prefix, tmp_path):
    model = make()
    with pytest.warns(UserWarning, match=rf"own\.safetensors: left out '{prefix}'"):
        built = build({prefix + name: tensor for name, tensor in model.state_dict().items()}, tmp_path)
    assert_same(built, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {f"module.{n}": t for n, t in w.items()} | {"n_averaged": torch.tensor(3)}, "left out n_averaged"),
        (lambda w: w | {"criterion.weight": torch.ones(5), "val_acc.tp": torch.ones(1)}, "left out criterion.weight"),
        (lambda w: w | {"mask_token": torch.zeros(1, 32)}, "left out mask_token"),
        (lambda w: {n.replace("blocks.", "blocks.0."): t for n, t in w.items()}, "its blocks are in chunks"),
    ],
)
def test_what_is_no_part_of_a_classifier_is_left_out(change, said, tmp_path):
    with pytest.warns(UserWarning, match=said):
        assert_same(build(change(make().state_dict()), tmp_path), make())


def test_a_head_beside_a_backbone(tmp_path):
    model = make()
    names = {name if name.startswith("head.") else f"backbone.{name}": t for name, t in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"'backbone\.'"):
        assert_same(build(names, tmp_path), model)


def test_the_image_size_is_read_off_the_positions(tmp_path):
    model = make(img_size=64)
    with pytest.warns(UserWarning, match=r"pos_embed has 1 × 65 places: img_size=64"):
        built = build(model.state_dict(), tmp_path, **UNSIZED)
    assert_same(built, model, 64)
    with pytest.raises(ValueError, match=r"1 × 65 places, which is img_size 64, but .*img_size 32: give 64"):
        build(model.state_dict(), tmp_path)
    with pytest.raises(ValueError, match=r"1 × 33 places, which is no square image.*img_size"):
        build(make(img_size=(32, 64)).state_dict(), tmp_path)
    assert_same(build(make(img_size=(32, 32)).state_dict(), tmp_path), make())


@pytest.mark.parametrize(
    "variant", [{"reg_tokens": 2, "no_embed_class": True}, {"class_token": False, "global_pool": "avg"}]
)
def test_positions_of_other_prefix_tokens(variant, tmp_path):
    model = make(img_size=64, **variant)
    with pytest.warns(UserWarning, match="img_size=64"):
        assert_same(build(model.state_dict(), tmp_path, **UNSIZED, **variant), model, 64)


def test_fc_norm_means_average_pooling(tmp_path):
    model = make(global_pool="avg")
    with pytest.warns(UserWarning, match="global_pool='avg'"):
        assert_same(build(model.state_dict(), tmp_path), model)
    with pytest.raises(ValueError, match=r"missing weights: norm\.bias, norm\.weight"):
        build(model.state_dict(), tmp_path, **SIZE, global_pool="token")


def test_two_heads_of_a_distilled_model(tmp_path):
    name = "deit_tiny_distilled_patch16_224"
    model = make(name)
    assert_same(build(model.state_dict(), tmp_path, name, **SIZE), model)
    with pytest.raises(ValueError, match=r"distilled model \(dist_token\): name that architecture"):
        build(model.state_dict(), tmp_path)


def test_a_missing_head_is_said(tmp_path):
    model = make(num_classes=0)
    with pytest.warns(UserWarning, match=r"no classifier \(head\.weight\)"):
        assert build(model.state_dict(), tmp_path).num_classes == 0
    with pytest.raises(ValueError, match=r"missing weights: head\.bias, head\.weight"):
        build(model.state_dict(), tmp_path, num_classes=5, **SIZE)


@pytest.mark.parametrize(
    ("extra", "cure"),
    [
        ("blocks.0.attn.qkv.lora_A.weight", r"PEFT: merge_and_unload\(\)"),
        ("blocks.0.merger.weight", "with a merger: make the model, insert as before"),
        ("decoder_blocks.0.norm1.weight", "pretraining, with its decoder"),
        ("vit.embeddings.patch_embeddings.projection.weight", "transformers: give its folder"),
        ("encoder.layers.encoder_layer_0.ln_1.weight", "torchvision: make it there"),
        ("visual.transformer.resblocks.0.ln_1.weight", "open_clip"),
        ("blocks.0.mlp.fc1._packed_params.weight", "quantised"),
        ("another.weight", r"unexpected weights: another\.weight"),
    ],
)
def test_other_forms_are_named(extra, cure, tmp_path):
    weights = make().state_dict() | {extra: torch.zeros(2)}
    with pytest.raises(ValueError, match=cure) as caught:
        build(weights, tmp_path)
    assert len(str(caught.value)) < 400


def test_another_width_or_depth_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"depth 2 \(the model 12\), embed_dim 32 \(the model 192\), patch_size 8"
    ) as found:
        build_from_weights(make().state_dict(), NAME, {}, tmp_path / "own.safetensors")
    assert len(str(found.value)) < 400
    with pytest.raises(ValueError, match=r"cannot make vit_tiny.*colour"):
        build(make().state_dict(), tmp_path, colour="red")


def test_names_with_a_prefix_beside_other_weights_are_refused(tmp_path):
    weights = {f"model.{name}": tensor for name, tensor in make().state_dict().items()}
    with pytest.raises(ValueError, match=r"begin with 'model\.', but fc\.weight do not: save the state dict"):
        build(weights | {"fc.weight": torch.zeros(2)}, tmp_path)


def test_a_folder_whose_weights_have_a_prefix(tmp_path):
    model = make()
    folder = save(model, tmp_path / "a")
    weights = read_tensors(folder / "model.safetensors")
    write_tensors(folder / "model.safetensors", {f"module.{name}": tensor for name, tensor in weights.items()})
    with pytest.warns(UserWarning, match=r"model\.safetensors: left out 'module\.'"):
        assert_same(load(folder), model)
