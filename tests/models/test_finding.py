"""A model found by what a person calls it, with the preprocessing that belongs to it."""

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from conftest import make_vit
from models.test_classifier import transformers_vit
from patchmerger import load, save
from patchmerger.data import Preprocessing
from patchmerger.models.finding import find_model, locate, weights_fingerprint

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_a_model_in_memory_and_its_folder_and_its_run_are_the_same_model(tmp_path):
    model = make_vit()
    save(
        model,
        tmp_path / "run" / "model",
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3),
        class_names=list("abcde"),
    )
    from_folder, from_run = find_model(tmp_path / "run" / "model"), find_model(str(tmp_path / "run"))
    assert from_folder.fingerprint == from_run.fingerprint == find_model(model).fingerprint
    assert from_folder.preprocessing == from_run.preprocessing
    assert from_run.preprocessing.mean == (0.1, 0.2, 0.3)
    assert from_run.class_names == tuple("abcde")
    assert weights_fingerprint(load(tmp_path / "run")) == from_run.fingerprint


def test_the_folder_of_a_study_or_an_unfinished_run_is_refused_by_name(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="saved no model: is it finished"):
        find_model(tmp_path)
    for name in ("plain", "merged"):
        save(make_vit(), tmp_path / "runs" / name / "model")
    with pytest.raises(FileNotFoundError, match=r"holds 2 models: name one, such as .*merged/model"):
        find_model(tmp_path)


def test_what_a_model_was_saved_with_stays_with_what_is_made_of_it(tmp_path):
    save(
        make_vit(),
        tmp_path / "a",
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, 0.8),
        class_names=list("abcde"),
    )
    found = find_model(tmp_path / "a")
    found.save(found.model, tmp_path / "b")
    assert find_model(tmp_path / "b").preprocessing == found.preprocessing
    assert find_model(tmp_path / "b").class_names == found.class_names


def test_a_folder_of_transformers_keeps_its_image_processor(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.3, 0.4])
    save(transformers_vit(), tmp_path / "vit", image_processor=processor)
    found = find_model(tmp_path / "vit")
    assert found.preprocessing.mean == (0.2, 0.3, 0.4)
    found.save(found.model, tmp_path / "again")
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert list(again.image_mean) == [0.2, 0.3, 0.4]


def test_a_safetensors_file_with_its_architecture(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **ARGS)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    found = find_model(tmp_path / "own.safetensors", architecture="vit_tiny_patch16_224", model_args=ARGS)
    assert found.fingerprint == weights_fingerprint(model)
    assert found.preprocessing.mean == (0.5, 0.5, 0.5)


def test_weights_tell_fingerprints_apart():
    model, other = make_vit(), make_vit()
    assert weights_fingerprint(model) == weights_fingerprint(other)
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert weights_fingerprint(model) != weights_fingerprint(other)


def test_settings_tell_fingerprints_apart():
    two, four = make_vit(num_heads=2), make_vit(num_heads=4)
    assert {name: t.shape for name, t in two.state_dict().items()} == {n: t.shape for n, t in four.state_dict().items()}
    four.load_state_dict(two.state_dict())
    assert weights_fingerprint(two) != weights_fingerprint(four)
    assert weights_fingerprint(two.train()) == weights_fingerprint(two.eval())


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    save(make_vit(), tmp_path / "vit_tiny_patch16_224")
    monkeypatch.chdir(tmp_path)
    assert locate("vit_tiny_patch16_224").resolve() == (tmp_path / "vit_tiny_patch16_224").resolve()


def test_names_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model \(vit_smal_patch16_224\) is no folder here.*did you mean"):
        find_model("vit_smal_patch16_224")
    without = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(ValueError, match=f"{without}.*timm has no weights"):
        find_model(without)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"holds weights alone: name the architecture"),
        ({"architecture": "vit_smal_patch16_224"}, "did you mean"),
        ({"architecture": "vit_tiny_patch16_224"}, "does not fit vit_tiny_patch16_224 with model_args|no square image"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(arguments, message, tmp_path):
    save_file(make_vit().state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=message):
        find_model(tmp_path / "own.safetensors", **arguments)


def test_files_that_are_no_models_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut short or not a safetensors file"):
        find_model(tmp_path / "cut.safetensors", architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="is a pickle"):
        find_model("model.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_model(tmp_path / "none.safetensors", architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"architecture .* is for a safetensors file"):
        find_model(make_vit(), architecture="vit_tiny_patch16_224")
    save(make_vit(), tmp_path / "a")
    with pytest.raises(ValueError, match=r"model_args .* is for a safetensors file"):
        find_model(tmp_path / "a", model_args={"depth": 3})


def test_a_pickle_says_how_to_get_its_weights():
    with pytest.raises(ValueError, match=r"is a pickle.*patchmerger convert"):
        locate("own.ckpt", "init")


def test_a_weights_file_beside_its_config_is_their_folder(tmp_path):
    file = save(make_vit(), tmp_path / "a") / "model.safetensors"
    assert find_model(file).fingerprint == find_model(tmp_path / "a").fingerprint
    with pytest.raises(ValueError, match=r"architecture \('vit_tiny_patch16_224'\) is for weights alone"):
        find_model(file, architecture="vit_tiny_patch16_224")
