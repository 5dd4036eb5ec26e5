"""The model to be accelerated: a plain classifier of RGB images, with the preprocessing that belongs to it."""

import pytest
import torch
import transformers

from conftest import make_vit
from models.test_classifier import transformers_vit
from patchmerger import insert, save
from patchmerger.acceleration import find_teacher
from patchmerger.data import Preprocessing


def test_given_numbers_go_before_known_ones(tmp_path):
    save(
        make_vit(),
        tmp_path / "model",
        preprocessing=Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3),
        class_names=list("abcde"),
    )
    teacher = find_teacher(tmp_path / "model", crop_pct=0.9)
    assert teacher.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.5,) * 3, crop_pct=0.9)
    assert (teacher.classifier.num_outputs, teacher.class_names, teacher.image_size) == (5, tuple("abcde"), 32)
    given = Preprocessing((0.4,) * 3, (0.1,) * 3)
    assert find_teacher(tmp_path / "model", preprocessing=given).preprocessing == given


def test_an_image_processor_stays_unless_numbers_are_given(tmp_path):
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2, 0.3, 0.4])
    save(transformers_vit(), tmp_path / "vit", image_processor=processor)
    assert list(find_teacher(tmp_path / "vit").image_processor.image_mean) == [0.2, 0.3, 0.4]
    assert find_teacher(tmp_path / "vit", crop_pct=0.9).image_processor is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: insert(make_vit()), r"has a merger already: patchmerger.remove\(model\)"),
        (lambda: make_vit(in_chans=1), r"takes images of 1 channels; the images here have 3 \(RGB\)"),
        (lambda: make_vit(num_classes=0), "gives 32 features and no scores of classes: train a classifier"),
        (transformers_vit, "does not say how its images are prepared: give preprocessing"),
        (lambda: torch.compile(make_vit()), r"model \(OptimizedModule\): it is compiled; pass model\._orig_mod"),
        (
            lambda: torch.nn.DataParallel(make_vit()),
            r"model \(DataParallel\): .* pass the model inside \(model\.module",
        ),
    ],
)
def test_models_that_cannot_be_accelerated_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        find_teacher(make())
    with pytest.raises(ValueError, match="features and no scores of classes"):
        find_teacher(
            transformers.ViTModel(transformers_vit().config), preprocessing=Preprocessing((0.5,) * 3, (0.5,) * 3)
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_recovered_in_single_precision(tmp_path, dtype):
    model = make_vit().to(dtype).train()
    save(model, tmp_path / "vit")
    for given in (model, tmp_path / "vit"):
        teacher = find_teacher(given)
        assert {p.dtype for p in teacher.classifier.parameters()} == {torch.float32}
        assert torch.equal(teacher.model.head.weight, model.head.weight.float())
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_model_in_memory_is_left_as_it_was():
    model = make_vit().train()
    teacher = find_teacher(model)
    assert model.training
    assert not teacher.model.training
    teacher.model.head.weight.data.zero_()
    assert model.head.weight.any()
