"""What cannot be loaded is refused with the file, the reason and the way out."""

import resource
import shutil
from collections import OrderedDict

import pytest
import torch

from conftest import make_images, make_vit
from hub.helpers import change_config, make_torchvision, make_transformers, read_config, split_weights
from patchmerger.hub import describe, load, save
from patchmerger.insertion import insert

pytestmark = pytest.mark.usefixtures("one_thread")


def test_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder \(.*nowhere\) does not exist$"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"folder \(models\) does not exist$"):
        describe("models")


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
        with pytest.raises(ValueError, match=rf"{name} is a pickle.*patchmerger convert .*{name} --architecture"):
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
    with pytest.raises(ValueError, match=r"other shapes: blocks\.1\.merger\.gain \(5,\) for \(4,\)"):
        load(saved)
    save(make_vit(), other, overwrite=True)
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(
        ValueError, match=r"missing weights: blocks\.1\.merger\.gain, .*merger\.norm\.weight and \d more$"
    ):
        load(saved)
    save(insert(make_vit(), (4, 2), after=(2, 3)), other, overwrite=True)
    shutil.copy(other / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"unexpected weights: blocks\.2\.merger\.gain"):
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
        ({"patchmerger": {"schema_version": 1}}, "says under .patchmerger. what is not understood: .*mergers"),
        (
            {"patchmerger": {"schema_version": 1, "mergers": [{"behind": 2}]}},
            "says under .patchmerger. what is not understood: .*behind",
        ),
        (
            {
                "patchmerger": {
                    "schema_version": 1,
                    "mergers": [{"after": 2, "num_tokens": 4, "prefix": "keep", "reducer": "X"}],
                }
            },
            r"not understood: .*mergers.0.reducer",
        ),
        ({"architecture": "vit_of_tomorrow"}, "names the architecture 'vit_of_tomorrow', which timm .* does not know"),
        ({"architecture": None}, "names no architecture: it is not in the form of timm's hub, of transformers or"),
        ({"library": "jax"}, r"is for a model of the library 'jax'; known are timm, torchvision or transformers"),
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


# Weights in several files


def test_shards(saved):
    expected = load(saved)(make_images())
    assert len(split_weights(saved)) == 2
    assert torch.equal(load(saved)(make_images()), expected)
    save(make_vit(), saved, overwrite=True)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_a_missing_shard(saved):
    first, *_ = split_weights(saved)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"has no {first.name}, which model\.safetensors\.index\.json names"):
        load(saved)


def test_a_truncated_shard(saved):
    first, *_ = split_weights(saved)
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{first.name} is cut short or not a safetensors file"):
        load(saved)


def test_a_shard_of_another_model(saved):
    first, last = split_weights(saved)
    shutil.copy(last, first)
    with pytest.raises(
        ValueError, match=rf"{first.name} does not hold blocks\.\S+, as model\.safetensors\.index\.json"
    ):
        load(saved)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", r"index\.json is not JSON"),
        ("[]", r"index\.json holds a list, not an object"),
        ("{}", r"index\.json has no weight_map"),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            r"names '\.\./model\.safetensors', which is no safetensors file",
        ),
        ('{"weight_map": {"a": "model.bin"}}', r"names 'model\.bin', which is no safetensors file beside it"),
        ('{"weight_map": {"a": 1}}', r"names 1, which is no safetensors file beside it"),
    ],
)
def test_a_broken_index(saved, index, message):
    split_weights(saved)
    (saved / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        load(saved)


# Absurd sizes, which must not take memory


def make_by(library):
    return {"timm": make_vit, "torchvision": make_torchvision, "transformers": make_transformers}[library]()


@pytest.mark.parametrize(
    ("library", "changes"),
    [
        ("timm", {"depth": 10**9}),
        ("timm", {"embed_dim": 2**20}),
        ("timm", {"mlp_ratio": 1e9}),
        ("timm", {"img_size": 8 * 10**6}),
        ("timm", {"num_classes": 10**12}),
        ("torchvision", {"num_layers": 10**9}),
        ("torchvision", {"hidden_dim": 2**20}),
        ("torchvision", {"image_size": 8 * 10**6}),
        ("transformers", {"num_hidden_layers": 10**9}),
        ("transformers", {"hidden_size": 2**20}),
        ("transformers", {"image_size": 8 * 10**6}),
    ],
)
def test_a_config_with_absurd_sizes_is_refused_before_memory_is_taken(library, changes, tmp_path):
    folder = save(make_by(library), tmp_path / "model")
    if library == "transformers":
        change_config(folder, **changes)
    else:
        change_config(folder, model_args={**read_config(folder)["model_args"], **changes})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (name, value), *_ = changes.items()
    with pytest.raises(
        ValueError, match=rf"config\.json (says {name} {value}, but|describes a model .* larger than its w)"
    ):
        load(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 2**10, f"{grown / 2**10:.0f} MiB more"  # KiB
