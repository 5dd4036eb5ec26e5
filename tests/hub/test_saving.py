"""What is refused, and that a folder appears atomically."""

import pickle
import stat
import warnings
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, load_model, save_model
from timm.utils import ModelEmaV3
from torch import nn

from conftest import SIZE, make_images, make_vit
from hub.helpers import assert_round_trip, make_torchvision, make_transformers
from patchmerger.costs import cost
from patchmerger.hosts import Host, register_host
from patchmerger.hub import load, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread")


class Halve(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, ::2]


def test_a_reducer_of_the_user_is_refused(folder):
    model = insert(make_vit(), 8, reducer=Halve())
    with pytest.raises(
        ValueError, match=r"blocks\.1\.merger is a Halve: only the methods in patchmerger.reducers.METHODS can"
    ):
        save(model, folder)
    assert not folder.parent.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Linear(2, 2),
            r"model \(Linear\) is not of timm, torchvision or transformers: .*save_model\(model, path",
        ),
        (lambda: timm.models.VisionTransformer(depth=1, embed_dim=8, num_heads=1), "has no architecture that timm"),
        (lambda: torch.compile(make_vit(), backend="eager"), r"saved: it is compiled; pass model\._orig_mod"),
        (lambda: nn.DataParallel(make_vit()), r"DataParallel\) .*pass the model inside \(model\.module\)"),
        (lambda: ModelEmaV3(make_vit()), r"model \(ModelEmaV3\) is not of .*holds one: pass model\.module"),
        (lambda: torch.fx.symbolic_trace(nn.Linear(2, 2)), "it is a traced graph; pass the model that was traced"),
        (
            lambda: weight_changed(nn.utils.parametrizations.spectral_norm),
            r"utils\.parametrize\.remove_parametrizations",
        ),
        (lambda: weight_changed(nn.utils.weight_norm), r"utils\.remove_weight_norm"),
        (
            lambda: weight_changed(partial(nn.utils.prune.l1_unstructured, name="weight", amount=0.3)),
            r"a blocks\.0\.attn\.qkv\.weight that is computed .*utils\.prune\.remove",
        ),
        (lambda: make_vit().to("meta"), r"cannot be saved: it is on the meta device"),
        (
            lambda: timm.create_model("vit_small_patch16_224", features_only=True, out_indices=(1,), **SIZE),
            r"model \(FeatureGetterNet\) .* only wraps the model for features; pass its \.model",
        ),
    ],
)
def test_what_cannot_be_saved(folder, make, message):
    with pytest.raises(ValueError, match=message):
        save(make(), folder)


def weight_changed(change):
    model = make_vit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of those that it means to take away
        change(model.blocks[0].attn.qkv)
    assert cost(model).params > 0
    return model


# The folder appears atomically


def test_an_existing_folder_is_kept(saved):
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"is not empty: take another, or replace the model with overwrite=True"):
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
        patch.setattr("patchmerger.runs.tensors.save_file", fail)
        with pytest.raises(OSError, match="no space left on device"):
            save(make_vit(), target, overwrite=overwrite)
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_failed_rename_puts_the_old_model_back(saved, monkeypatch):
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("interrupted")
        return rename(self, target)

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_for_the_new_one)
        with pytest.raises(OSError, match="interrupted"):
            save(make_vit(), saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["mine"]


@pytest.mark.parametrize("make", [make_vit, make_torchvision, make_transformers])
def test_what_is_saved_can_be_read_by_others_as_any_new_folder_and_file(make, tmp_path):
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    folder = save(make(), tmp_path / "model")
    assert mode(folder) == mode(tmp_path / "usual")
    assert {mode(path) for path in folder.iterdir()} == {mode(tmp_path / "usual" / "file")}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_is_pickled(saved):
    for path in saved.iterdir():
        with pytest.raises(Exception, match=r".") as caught:
            pickle.loads(path.read_bytes())
        assert not isinstance(caught.value, AssertionError)
    assert "blocks.1.merger.weight" in load_file(saved / "model.safetensors")


class OwnViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(2))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_the_way_out_for_a_class_of_one_s_own(tmp_path):
    @register_host(OwnViT)
    def describe(model: OwnViT) -> Host:
        return Host(blocks=model.blocks, dim=32, num_prefix_tokens=0)

    model = insert(OwnViT(), 4, after=1)
    with pytest.raises(ValueError, match=r"model \(OwnViT\) is not of .*no config could build a class of your own"):
        save(model, tmp_path / "folder")
    save_model(model, tmp_path / "own.safetensors")
    again = insert(OwnViT(), 4, after=1)
    load_model(again, tmp_path / "own.safetensors")
    tokens = torch.randn(1, 9, 32)
    assert torch.equal(again(tokens), model(tokens))


def test_adapters_of_peft_are_merged_before_saving(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv"], modules_to_save=["merger", "head"])
    model = peft.get_peft_model(insert(make_vit(), 4), config).eval()
    for wrapped in (model, model.base_model.model):
        with pytest.raises(ValueError, match=r"adapters of PEFT: patchmerger\.save\(model\.merge_and_unload\(\)"):
            save(wrapped, tmp_path / "model")
    images = make_images()
    expected = model(images)
    again = load(save(model.merge_and_unload(), tmp_path / "model"))
    torch.testing.assert_close(again(images), expected)


def dynamically_quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(insert(make_vit(), 4), {nn.Linear}, dtype=torch.qint8)


def quantised_by_torchao() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    model = insert(make_vit(), 4)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [dynamically_quantised, quantised_by_torchao])
def test_quantised_models_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be saved: it is quantised or sparse .*before quantising"):
        save(make(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_only_holds_one_of_a_library_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"model \(Sequential\) is not of .*holds one: pass model\.0"):
        save(nn.Sequential(make_vit(), nn.Linear(5, 2)), tmp_path / "model")
