"""Models of timm come back from their folders as they were."""

import json

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

from conftest import SIZE, make_images, make_timm, make_vit
from hub.helpers import assert_round_trip, change_config, read_config
from patchmerger.data import Preprocessing
from patchmerger.hub import SavedConfig, SavedMerger, describe, load, save
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.merger import PatchMerger
from patchmerger.presets import preset
from patchmerger.reducers import AveragePool

pytestmark = pytest.mark.usefixtures("one_thread")


# Round trips


@pytest.mark.parametrize("places", [(), (1, 3)], ids=["plain", "two mergers"])
def test_round_trip(variant, places, folder):
    model = make_vit(variant)
    if places:
        insert(model, tuple(range(9, 0, -4))[: len(places)], after=places)
    again = assert_round_trip(model, folder)
    assert [found.after for found in mergers(again)] == list(places)


def test_timm_reads_a_plain_model(variant, folder):
    model = make_vit(variant)
    save(model, folder)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(make_images()), model(make_images()))


def test_timm_does_not_drop_a_merger_in_silence(saved):
    with pytest.raises(RuntimeError, match=r"Unexpected key.*blocks\.1\.merger\.weight"):
        timm.create_model(f"local-dir:{saved}", pretrained=True)


@pytest.mark.parametrize("prior", ["grid", "rows"])
def test_what_located_queries_began_as(prior, folder):
    (found,) = mergers(assert_round_trip(insert(make_vit(), 4, prior=prior), folder))
    assert found.module.prior.layout == prior
    assert describe(folder).mergers[0].prior == prior


@pytest.mark.parametrize("name", ["default", "paper", "vit-pytorch", "mean"])
def test_presets(name, folder):
    (found,) = mergers(assert_round_trip(insert(make_vit(), 4, **preset(name, dim=32)), folder))
    assert (found.module.norm_mode, found.module.scale) == tuple(preset(name, dim=32)[k] for k in ("norm", "scale"))


def test_unlike_mergers_in_one_model(folder):
    model = insert(make_vit("pooling with prefix"), 9, after=1, prefix="merge", norm="none", scale=0.3)
    insert(model, 6, after=2, prefix="merge", reducer=AveragePool(6))
    insert(model, 4, after=3, prefix="merge", norm="both", scale=1 / 3)
    assert_round_trip(model, folder)
    assert describe(folder).mergers == (
        SavedMerger(1, 9, "merge", "patchmerger", norm="none", scale=0.3, eps=None),
        SavedMerger(2, 6, "merge", "average", arguments={"num_heads": 1}),
        SavedMerger(3, 4, "merge", "patchmerger", norm="both", scale=1 / 3, eps=1e-6),
    )


def test_the_eps_of_a_converted_merger_is_kept(folder):
    merger = PatchMerger(32, 4)
    merger.norm.eps = 1e-3
    (found,) = mergers(assert_round_trip(insert(make_vit(), 4, reducer=merger), folder))
    assert found.module.norm.eps == 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_each_weight_is_kept(dtype, folder):
    model = insert(make_vit().to(dtype), 4)
    model.blocks[1].merger.float()
    stored = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert len(set(stored.values())) == 2
    model.blocks[1].merger.to(dtype)
    again = save(model, folder)
    assert {p.dtype for p in load(again).parameters()} == {dtype}
    assert torch.equal(load(again)(make_images().to(dtype)), model(make_images().to(dtype)))


def test_changes_that_timm_records_need_no_model_args(folder):
    model = make_vit(reg_tokens=2, in_chans=1, act_layer="relu", drop_path_rate=0.2, drop_rate=0.1)
    model.reset_classifier(3, global_pool="avg")
    model.set_input_size((48, 32))
    insert(model, 4)
    images = torch.randn(2, 1, 48, 32)
    expected = model(images)
    save(model, folder)
    assert torch.equal(load(folder)(images), expected)
    assert describe(folder).input_size == (1, 48, 32)


def test_models_of_other_families_are_saved_too(folder):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    save(model, folder)
    assert torch.equal(load(folder)(images), expected)


def test_saving_leaves_the_model_and_the_random_state_alone(folder):
    model = insert(make_vit(drop_path_rate=0.1), 4).train()
    model.blocks[0].eval()
    model.set_grad_checkpointing()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save(model, folder)
    load(folder)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_loaded_models_can_be_trained_and_saved_again(saved, tmp_path):
    model = load(saved)
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert not torch.equal(model(make_images()), load(saved)(make_images())), "training changed the file"
    assert_round_trip(model, tmp_path / "other" / "again")


def test_a_non_contiguous_model(folder):
    model = insert(make_vit(), 4).to(memory_format=torch.channels_last)
    save(model, folder)
    torch.testing.assert_close(load(folder)(make_images()), model(make_images()))


def test_load_onto_a_device(saved):
    assert {p.device.type for p in load(saved, device="meta").parameters()} == {"meta"}
    for device in ("cuda:99", "gpu"):
        with pytest.raises(ValueError, match=rf"device \('{device}'\) is not there: .*; there is cpu"):
            load(saved / "before anything is read", device=device)


def test_the_zoo_with_its_own_merger_with_another_and_without(folder):
    model = timm.create_model("patchmerger_tiny_patch16_224", **SIZE, num_tokens=4, after=1).eval()
    assert_round_trip(model, folder)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm(make_images()), model(make_images()))
    config = read_config(folder)
    del config["patchmerger"]
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(load(folder)(make_images()), model(make_images())), "as timm alone would have written it"
    for other in (insert(remove(model), 3, after=2), remove(model)):
        save(other, folder, overwrite=True)
        again = load(folder)
        assert [m.num_tokens for m in mergers(again)] == [m.num_tokens for m in mergers(other)]
        assert torch.equal(again(make_images()), other(make_images()))


# The config


def test_preprocessing_and_class_names(folder):
    names = ["ant", "bee", "crane", "crane", "été"]
    save(
        insert(make_vit(), 4),
        folder,
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear", "border"),
        class_names=names,
    )
    expected = SavedConfig(
        library="timm",
        architecture="vit_small_patch16_224",
        num_classes=5,
        input_size=(3, 32, 32),
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.8, "bilinear", "border"),
        class_names=tuple(names),
        mergers=(SavedMerger(2, 4, "keep", "patchmerger", norm="scores", scale=1.0, prior="grid", eps=1e-6),),
    )
    assert describe(folder) == expected
    config = json.loads((folder / "config.json").read_text())
    assert config["label_names"] == names
    assert config["patchmerger"]["schema_version"] == 1
    model = load(folder)
    data = resolve_model_data_config(model)
    assert tuple(data["input_size"]) == (3, 32, 32)
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data["crop_pct"], data["interpolation"]) == (0.8, "bilinear")
    save(model, folder, overwrite=True)
    assert describe(folder) == expected, "what a model was loaded with is lost when it is saved again"


def test_preprocessing_by_default_is_the_architecture_s(folder):
    model = make_vit("attention pooling")
    saved_config = describe(save(model, folder))
    assert saved_config.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 0.9)
    assert saved_config.class_names is None
    assert saved_config.mergers == ()


def test_one_channel(folder):
    model = make_vit(in_chans=1)
    saved_config = describe(save(model, folder, preprocessing=Preprocessing((0.3,), (0.35,))))
    assert saved_config.input_size == (1, 32, 32)
    assert (saved_config.preprocessing.mean, saved_config.preprocessing.std) == ((0.3,), (0.35,))


def test_describe_reads_timm_s_older_formats(saved):
    change_config(saved, label_names={"0": "ant", "2": "bee"})
    assert describe(saved).class_names == ("ant", "1", "bee")
    config = json.loads((saved / "config.json").read_text())
    flat = {**config["pretrained_cfg"], "architecture": config["architecture"]}
    (saved / "config.json").write_text(json.dumps(flat))
    assert describe(saved).mergers == ()
    assert describe(saved).num_classes == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "architecture",
    ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224", "vit_small_patch16_rope_224",
     "vit_small_patch16_dinov3"],
)  # fmt: skip
@torch.no_grad()
def test_buffers_that_no_file_holds_have_the_number_format_of_the_weights(architecture, dtype, folder):
    model = insert(make_timm(architecture, **SIZE), 4, positions="drop").to(dtype)
    images = make_images().to(dtype)
    expected = model(images)
    again = load(save(model, folder))
    assert torch.equal(again(images), expected)
    assert {name: b.dtype for name, b in again.named_buffers()} == {name: b.dtype for name, b in model.named_buffers()}


@torch.no_grad()
def test_buffers_of_another_number_format_keep_it(folder):
    model = insert(make_timm("vit_small_patch16_rope_224", **SIZE), 4).to(torch.bfloat16)
    wide = {name for name, _ in model.named_buffers()}
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            module._buffers[name] = module._buffers[name].float()
    again = load(save(model, folder))
    assert wide
    assert {b.dtype for _, b in again.named_buffers()} == {torch.float32}
    assert next(again.parameters()).dtype == torch.bfloat16
    change_config(folder, patchmerger_buffers={min(wide): "float12"})
    with pytest.raises(ValueError, match=r"patchmerger_buffers says 'float12'"):
        load(folder)
