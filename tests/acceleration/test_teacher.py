"""A trained model found by what a person calls it, with the preprocessing that belongs to it."""

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from acceleration.test_classifier import transformers_vit
from conftest import make_vit
from patchmerger import insert, save
from patchmerger.acceleration.teacher import find_teacher, weights_fingerprint

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_a_model_in_memory_and_its_folder_are_the_same_teacher(tmp_path):
    model = make_vit()
    save(model, tmp_path / "run" / "model", mean=(0.1, 0.2, 0.3), class_names=list("abcde"))
    from_folder, from_run = find_teacher(tmp_path / "run" / "model"), find_teacher(str(tmp_path / "run"))
    in_memory = find_teacher(model, mean=(0.1, 0.2, 0.3))
    assert from_folder.fingerprint == from_run.fingerprint == in_memory.fingerprint
    assert (
        from_folder.preprocessing.mean == from_run.preprocessing.mean == in_memory.preprocessing.mean == (0.1, 0.2, 0.3)
    )
    assert (from_run.num_classes, from_run.class_names) == (5, tuple("abcde"))


def test_a_safetensors_file_with_its_architecture(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **ARGS)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    teacher = find_teacher(tmp_path / "own.safetensors", architecture="vit_tiny_patch16_224", model_args=ARGS)
    assert teacher.num_classes == 7
    assert teacher.fingerprint == weights_fingerprint(model)


def test_a_folder_of_transformers_keeps_its_image_processor(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.3, 0.4])
    save(transformers_vit(), tmp_path / "vit", image_processor=processor)
    teacher = find_teacher(tmp_path / "vit")
    assert teacher.preprocessing.mean == (0.2, 0.3, 0.4)
    assert list(teacher.saving["image_processor"].image_mean) == [0.2, 0.3, 0.4]


def test_weights_tell_fingerprints_apart():
    model, other = make_vit(), make_vit()
    assert weights_fingerprint(model) == weights_fingerprint(other)
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert weights_fingerprint(model) != weights_fingerprint(other)


def test_a_timm_model_without_weights_is_told():
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_rope_ape_test'|did you mean"):
        find_teacher("vit_tiny_patch16_rope_ape_test")
    without = next(name for name in timm.list_models("vit_*") if not timm.is_model_pretrained(name))
    with pytest.raises(ValueError, match="timm has no weights under that name"):
        find_teacher(without)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: insert(make_vit()), r"has a merger already: patchmerger.remove\(model\)"),
        (lambda: make_vit(in_chans=1), r"takes images of 1 channels; the images here have 3 \(RGB\)"),
        (lambda: make_vit(num_classes=0), "has no classifier"),
        (transformers_vit, "does not say how its images are normalised: give mean and std"),
    ],
)
def test_models_that_cannot_be_accelerated_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        find_teacher(make())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"holds weights alone: name the architecture"),
        ({"architecture": "vit_smal_patch16_224"}, "did you mean"),
        ({"architecture": "vit_tiny_patch16_224"}, "does not fit vit_tiny_patch16_224 with model_args"),
    ],
)
def test_a_file_that_does_not_fit_is_told(arguments, message, tmp_path):
    save_file(make_vit().state_dict(), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match=message):
        find_teacher(tmp_path / "own.safetensors", **arguments)


def test_files_that_are_none_are_told(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="cut short or not a safetensors file"):
        find_teacher(tmp_path / "cut.safetensors", architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="is a pickle"):
        find_teacher("model.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_teacher(tmp_path / "none.safetensors", architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"architecture .* is for a safetensors file"):
        find_teacher(make_vit(), architecture="vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="must be three numbers each, std above 0"):
        find_teacher(make_vit(), std=(0.5, 0.5, 0.0))
