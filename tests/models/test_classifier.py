"""Scores and pooled features alike for timm, transformers and torchvision; how far scores and features are apart."""

import logging

import pytest
import torch
import torchvision
import transformers
from timm.task import LogitDistillationTask
from torch import nn

from conftest import VARIANTS, make_images, make_timm, make_vit
from patchmerger.models.classifier import Classifier, divergence, feature_error

ROPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 5}


def transformers_vit(cls=transformers.ViTForImageClassification, config=transformers.ViTConfig):
    torch.manual_seed(0)
    return cls(
        config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=5,
        )
    ).eval()


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"distilled"}))
def test_features_are_what_timm_calls_pre_logits(name):
    model, images = make_vit(name), make_images()
    scores, features = Classifier(model).with_features(images)
    assert torch.equal(scores, model(images))
    assert torch.equal(features, model.forward_head(model.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_timm("vit_small_patch16_rope_224", **ROPE),
        lambda: make_vit("distilled"),
        transformers_vit,
        lambda: transformers_vit(transformers.Dinov2ForImageClassification, transformers.Dinov2Config),
        lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5).eval(),
    ],
    ids=["RoPE", "distilled", "transformers", "DINOv2", "torchvision"],
)
def test_the_last_layer_makes_scores_of_the_features(make):
    model = make()
    classifier = Classifier(model)
    assert (classifier.num_outputs, classifier.channels) == (5, 3)
    with torch.no_grad():
        scores, features = classifier.with_features(make_images())
        output = model(make_images())
        assert torch.equal(scores, output if isinstance(output, torch.Tensor) else output.logits)
        assert classifier.head is not None
        assert features.shape == (2, classifier.head.in_features)


def test_without_a_head_the_output_is_the_features():
    model = make_vit(num_classes=0)
    scores, features = Classifier(model).with_features(make_images())
    assert Classifier(model).head is None
    assert torch.equal(scores, features)


def test_a_wrapped_model_is_left_as_it_was():
    model = make_vit().train()
    classifier = Classifier(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert {key.removeprefix("net.") for key in classifier.state_dict()} == set(model.state_dict())


def test_other_models_than_classifiers_are_refused():
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {f"decoder_{name}": value for name, value in tiny.items()}
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**tiny, **decoder, image_size=16, patch_size=8))
    with pytest.raises(ValueError, match=r"gives .* and not \(B, C\)"):
        Classifier(model)
    from hub.helpers import make_towers

    with pytest.raises(ValueError, match=r"CLIPModel.* compares images with texts and gives no scores"):
        Classifier(make_towers())
    tower = transformers_vit(transformers.ViTModel)
    assert not Classifier(tower).gives_scores
    assert Classifier(tower).head is None  # its pooled output counts as features


def test_divergence_is_that_of_timms_task():
    logging.getLogger("timm").setLevel(logging.ERROR)
    torch.manual_seed(0)
    student, teacher = make_vit(), make_vit("average pooling")
    task = LogitDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), temperature=3.0, verbose=False, distill_loss_weight=1.0
    )
    images, targets = make_images(4), torch.tensor([0, 1, 2, 3])
    expected = task(images, targets)
    wanted = teacher(task.teacher.normalize_input(images, task.student_mean, task.student_std))
    ours = divergence(student(images), wanted, temperature=3.0)
    assert ours.item() == pytest.approx(expected["kd_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("multi_label", [False, True])
def test_divergence_is_zero_only_where_both_agree(multi_label):
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert divergence(scores, scores, multi_label=multi_label).item() == pytest.approx(0, abs=1e-6)
    assert divergence(scores, scores.flip(1), multi_label=multi_label).item() > 0.1


def test_feature_error_is_one_for_the_mean():
    target = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 7
    assert feature_error(target, target).item() == 0
    assert feature_error(target.mean(dim=0).expand(50, 3), target).item() == pytest.approx(1, abs=1e-5)
