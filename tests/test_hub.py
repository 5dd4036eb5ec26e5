import json
import pickle
import shutil
import stat
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from conftest import SIZE, make_images, make_vit
from patchmerger.hub import describe, load, save
from patchmerger.insertion import insert, mergers
from patchmerger.merger import PatchMerger, preset
from patchmerger.reducers import AveragePool
from patchmerger.saved_config import SavedConfig, SavedMerger

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "mine"


@pytest.fixture
def saved(folder: Path) -> Path:
    """A saved model with a merger."""
    return save(insert(make_vit(), 4), folder)


def assert_round_trip(model: nn.Module, folder: Path) -> nn.Module:
    images = make_images()
    expected = model(images)
    assert save(model, folder) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "a temporary folder was left behind"
    again = load(folder)
    assert not again.training
    assert torch.equal(again(images), expected)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert [type(module) for module in again.modules()] == [type(module) for module in model.modules()]
    return again


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Round trips


@pytest.mark.parametrize("places", [(), (2,), (1, 3)], ids=["plain", "one merger", "two mergers"])
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
        SavedMerger(1, 9, "merge", "PatchMerger", norm="none", scale=0.3, eps=None),
        SavedMerger(2, 6, "merge", "AveragePool"),
        SavedMerger(3, 4, "merge", "PatchMerger", norm="both", scale=1 / 3, eps=1e-6),
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


# The config


def test_preprocessing_and_class_names(folder):
    names = ["ant", "bee", "crane", "crane", "été"]
    save(
        insert(make_vit(), 4),
        folder,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        crop_pct=0.8,
        interpolation="bilinear",
        class_names=names,
    )
    expected = SavedConfig(
        architecture="vit_small_patch16_224",
        num_classes=5,
        input_size=(3, 32, 32),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        crop_pct=0.8,
        crop_mode="center",
        interpolation="bilinear",
        class_names=tuple(names),
        mergers=(SavedMerger(2, 4, "keep", "PatchMerger", norm="scores", scale=1.0, eps=1e-6),),
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
    assert (saved_config.mean, saved_config.std, saved_config.crop_pct) == ((0.5,) * 3, (0.5,) * 3, 0.9)
    assert saved_config.class_names is None
    assert saved_config.mergers == ()


def test_one_channel(folder):
    model = make_vit(in_chans=1)
    saved_config = describe(save(model, folder, mean=(0.3,), std=(0.35,)))
    assert (saved_config.input_size, saved_config.mean, saved_config.std) == ((1, 32, 32), (0.3,), (0.35,))


def test_describe_reads_timm_s_older_formats(saved):
    change_config(saved, label_names={"0": "ant", "2": "bee"})
    assert describe(saved).class_names == ("ant", "1", "bee")
    config = json.loads((saved / "config.json").read_text())
    flat = {**config["pretrained_cfg"], "architecture": config["architecture"]}
    (saved / "config.json").write_text(json.dumps(flat))
    assert describe(saved).mergers == ()
    assert describe(saved).num_classes == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": ["a", "b"]}, "class_names has 2 names, but the model has 5 classes"),
        ({"class_names": "abcde"}, r"class_names \('abcde'\) must be a sequence of strings"),
        ({"class_names": [0, 1, 2, 3, 4]}, "must be a sequence of strings"),
        ({"mean": (0.5, 0.5)}, "mean must have one value or 3 values, got 2"),
        ({"std": (0.5, 0.0, 0.5)}, r"std \(\(0.5, 0.0, 0.5\)\) must be above 0"),
        ({"crop_pct": 0}, r"crop_pct \(0\) must be above 0"),
        ({"interpolation": "cubic"}, r"interpolation \('cubic'\) must be one of"),
        ({"model_args": {"num_classes": 9}}, "num_classes=9 disagrees with the current model"),
        ({"model_args": {"colour": "red"}}, r"timm .* cannot make 'vit_small_patch16_224' with the model_args.*colour"),
    ],
)
def test_options_that_do_not_fit(folder, options, message):
    with pytest.raises(ValueError, match=message):
        save(make_vit(), folder, **options)
    assert not folder.parent.exists() or list(folder.parent.iterdir()) == []


# A model that could not be built again is never written


def shallower(model: nn.Module) -> None:
    model.blocks = model.blocks[:3]


def other_heads(model: nn.Module) -> None:
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 4, 8, 8**-0.5


def other_activation(model: nn.Module) -> None:
    model.blocks[3].mlp.act = nn.ReLU()


def other_eps(model: nn.Module) -> None:
    model.blocks[0].norm1.eps = 1e-5


def other_forward(model: nn.Module) -> None:
    forward = model.blocks[2].forward
    model.blocks[2].forward = lambda x: 1.01 * forward(x)


def other_head(model: nn.Module) -> None:
    model.head = nn.Linear(32, 9)


def other_parameter(model: nn.Module) -> None:
    model.extra = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("hidden", [False, True], ids=["", "hidden by a head of zeros"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shallower, r"unexpected weights|missing weights: blocks\.3"),
        (other_heads, r"blocks\.0\.attn\.num_heads = 2, not 4; say in model_args"),
        (other_activation, r"a GELU as blocks\.3\.mlp\.act, not a ReLU"),
        (other_eps, r"blocks\.0\.norm1\.eps = 1e-06, not 1e-05"),
        (other_forward, r"other outputs \(forward_features differs by"),
        (other_head, r"other shapes: head\.bias \(9,\) for \(5,\)"),
        (other_parameter, r"unexpected weights: extra"),
    ],
)
def test_changes_by_hand_are_refused(folder, change, message, hidden):
    model = insert(make_vit(), 4)
    change(model)
    if hidden:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    with pytest.raises(ValueError, match=message):
        save(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_model_args_say_what_was_changed_by_hand(folder):
    model = insert(make_vit(), 4)
    shallower(model)
    save(model, folder, model_args={"depth": 3})
    assert torch.equal(load(folder)(make_images()), model(make_images()))
    model = make_vit()
    other_heads(model)
    save(model, folder, model_args={"num_heads": 4}, overwrite=True)
    assert torch.equal(load(folder)(make_images()), model(make_images()))


def test_arguments_that_json_cannot_hold(folder):
    model = make_vit(block_fn=ParallelScalingBlock)
    with pytest.raises(ValueError, match="'block_fn' is not serializable; provide a model_args replacement"):
        save(model, folder)
    assert list(folder.parent.iterdir()) == []


def test_a_model_that_gives_nan_is_refused(folder):
    model = make_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="forward_features of model gives values that are not finite"):
        save(model, folder)


class Halve(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, ::2]


def test_a_reducer_of_the_user_is_refused(folder):
    model = insert(make_vit(), 8, reducer=Halve())
    with pytest.raises(
        ValueError, match=r"blocks\.1\.merger is a Halve: only PatchMerger and AveragePool can be saved"
    ):
        save(model, folder)
    assert not folder.parent.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), r"model \(Linear\) has no architecture that timm knows \(None\)"),
        (lambda: timm.models.VisionTransformer(depth=1, embed_dim=8, num_heads=1), "has no architecture that timm"),
        (lambda: torch.compile(make_vit(), backend="eager"), r"model is compiled: save model\._orig_mod"),
        (lambda: nn.DataParallel(make_vit()), r"model is wrapped by DataParallel: save model\.module"),
        (lambda: make_vit().to("meta"), "model holds no weights: .* is on the meta device"),
        (
            lambda: timm.create_model("vit_small_patch16_224", features_only=True, out_indices=(1,), **SIZE),
            r"model \(FeatureGetterNet\) only wraps a model for its features: save its \.model",
        ),
    ],
)
def test_what_cannot_be_saved(folder, make, message):
    with pytest.raises(ValueError, match=message):
        save(make(), folder)


# The folder appears whole or not at all


def test_an_existing_folder_is_kept(saved):
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"is not empty: choose another, or replace the model with overwrite=True"
    ):
        save(make_vit(), saved)
    assert (saved / "model.safetensors").read_bytes() == before


def test_overwrite_replaces_a_model_and_nothing_else(saved):
    model = make_vit("distilled")
    save(model, saved, overwrite=True)
    assert torch.equal(load(saved)(make_images()), model(make_images()))
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]
    (saved / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds more than a saved model \(notes\.txt\)"):
        save(model, saved, overwrite=True)
    assert (saved / "notes.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(folder):
    folder.mkdir(parents=True)
    assert_round_trip(make_vit(), folder)


def test_a_file_in_the_way(tmp_path):
    path = tmp_path / "model"
    path.write_text("")
    with pytest.raises(FileExistsError, match=r"folder \(.*model\) is a file"):
        save(make_vit(), path, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_on_the_way_leaves_what_was_there(saved, monkeypatch, overwrite):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    target = saved if overwrite else saved.with_name("new")
    with monkeypatch.context() as patch:
        patch.setattr("patchmerger.hub.save_file", fail)
        with pytest.raises(OSError, match="no space left on device"):
            save(make_vit(), target, overwrite=overwrite)
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_failed_rename_puts_the_old_model_back(saved, monkeypatch):
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("interrupted")
        return rename(self, target)

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_for_the_new_one)
        with pytest.raises(OSError, match="interrupted"):
            save(make_vit(), saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]


def test_the_folder_can_be_read_by_others_as_any_new_folder(saved):
    usual = saved.parent / "usual"
    usual.mkdir()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_nothing_is_pickled(saved):
    for path in saved.iterdir():
        with pytest.raises(Exception, match=r".") as caught:
            pickle.loads(path.read_bytes())
        assert not isinstance(caught.value, AssertionError)
    assert "blocks.1.merger.weight" in load_file(saved / "model.safetensors")


# What cannot be loaded


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder \(.*nowhere\) does not exist$"):
        load(tmp_path / "nowhere")
    for name in ("timm/vit_base_patch16_224", "hf-hub:timm/vit_base_patch16_224", "hf_hub:someone/model@v1"):
        with pytest.raises(FileNotFoundError, match="if it is a name on the Hugging Face hub, download it first"):
            load(name)
        with pytest.raises(FileNotFoundError, match="if it is a name on the Hugging Face hub"):
            describe(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"folder \(.*\) has no {name}"):
        load(saved)


def test_a_file_instead_of_its_folder(saved):
    with pytest.raises(ValueError, match=r"is a file: give the folder that holds config\.json and model\.safetensors"):
        load(saved / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "last.ckpt", "model.pt"])
def test_pickles_are_refused(saved, name):
    (saved / "model.safetensors").unlink()
    torch.save(OrderedDict(), saved / name)
    for path in (saved, saved / name):
        with pytest.raises(ValueError, match=rf"{name} is a pickle.*weights_only=True.*patchmerger\.save"):
            load(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short or not a safetensors file"):
        load(saved)


def test_weights_of_another_model(saved, tmp_path):
    weights = saved / "model.safetensors"
    other = save(insert(make_vit(), 5), tmp_path / "other")
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"other shapes: blocks\.1\.merger\.weight \(5, 32\) for \(4, 32\)"):
        load(saved)
    save(make_vit(), other, overwrite=True)
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"missing weights: blocks\.1\.merger\.norm\.bias, .*merger\.weight$"):
        load(saved)
    save(insert(make_vit(), (4, 2), after=(2, 3)), other, overwrite=True)
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"unexpected weights: blocks\.2\.merger\.norm\.bias"):
        load(saved)
    save(make_vit(depth=2), other, overwrite=True)
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"missing weights: .* and \d+ more$"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"patchmerger": {"schema_version": 2}},
            "has schema_version 2, but this patchmerger knows up to 1: upgrade it",
        ),
        ({"patchmerger": {"schema_version": "1"}}, r"no valid schema_version under 'patchmerger' \('1'\)"),
        ({"patchmerger": []}, r"no valid schema_version under 'patchmerger' \(None\)"),
        ({"patchmerger": {"schema_version": 1}}, "describes its mergers in a way that is not understood: 'mergers'"),
        (
            {"patchmerger": {"schema_version": 1, "mergers": [{"behind": 2}]}},
            "describes its mergers in a way that is not understood: .*behind",
        ),
        (
            {
                "patchmerger": {
                    "schema_version": 1,
                    "mergers": [{"after": 2, "num_tokens": 4, "prefix": "keep", "reducer": "X"}],
                }
            },
            "the merger after block 2 is not understood",
        ),
        ({"architecture": "vit_of_tomorrow"}, "names the architecture 'vit_of_tomorrow', which timm .* does not know"),
        ({"architecture": None}, "names no architecture: it is not in timm's hub format"),
        ({"model_args": {"colour": "red"}}, "cannot make 'vit_small_patch16_224' with the model_args in .*colour"),
    ],
)
def test_broken_configs(saved, changes, message):
    change_config(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_a_config_that_is_not_json(saved):
    (saved / "config.json").write_text("{")
    for read in (load, describe):
        with pytest.raises(ValueError, match=r"config\.json is not JSON"):
            read(saved)


def test_describe_says_what_is_missing(saved):
    change_config(saved, pretrained_cfg={})
    with pytest.raises(ValueError, match="does not say 'input_size'"):
        describe(saved)
