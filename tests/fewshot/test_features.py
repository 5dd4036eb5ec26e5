"""Frozen features: what a model's head sees, for every image once, in order, with the model left as it was."""

import pytest
import torch
from torch import nn
from torchvision.transforms.v2.functional import normalize

from conftest import make_vit
from patchmerger import insert
from patchmerger.data import EvalTransform, ImageSet, Preprocessing
from patchmerger.data.images import InMemory
from patchmerger.fewshot.features import extract_features, pre_logits

pytestmark = pytest.mark.usefixtures("one_thread")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPROCESSING = Preprocessing(MEAN, STD)


def make_set(count, size=(32, 32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    pictures = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(count)]
    return ImageSet(InMemory(pictures), torch.zeros(count, dtype=torch.long))


def extract(model, *sets, **options):
    given = {"image_size": 32, "preprocessing": PREPROCESSING, "batch_size": 4, "progress": False}
    return extract_features(model, sets, **{**given, **options})


def mean_colour(_, images):
    return images.mean(dim=(2, 3))


@pytest.mark.parametrize("kind", ["class token", "average pooling", "attention pooling", "distilled", "post-norm"])
@pytest.mark.parametrize("merged", [False, True], ids=["plain", "merged"])
def test_the_head_of_the_features_is_the_model(kind, merged):
    model = make_vit(kind)
    if merged:
        insert(model, num_tokens=4)
    images = make_set(6)
    (features,) = extract(model, images)
    assert (features.shape, features.dtype) == ((6, 32), torch.float32)
    pixels = normalize(torch.stack([images[i] for i in range(6)]).float() / 255, list(MEAN), list(STD))
    with torch.no_grad():
        torch.testing.assert_close(features, pre_logits(model, pixels), rtol=1e-5, atol=1e-5)
        if kind != "distilled":  # whose two heads read a token each
            torch.testing.assert_close(model.head(features), model(pixels), rtol=1e-4, atol=1e-4)


def test_several_sets_and_any_batch_size_give_the_same(vit):
    sets = [make_set(5), make_set(3, seed=1)]
    together = extract(vit, *sets)
    assert [len(features) for features in together] == [5, 3]
    for images, features in zip(sets, together, strict=True):
        torch.testing.assert_close(extract(vit, images, batch_size=2)[0], features)


def test_images_of_another_size_are_fitted():
    images, cropped = make_set(2, size=(40, 50)), Preprocessing(MEAN, STD, 0.8, "bilinear")
    (features,) = extract(nn.Linear(1, 1), images, features=mean_colour, image_size=16, preprocessing=cropped)
    fitted = torch.stack([EvalTransform(16, cropped)(images[i]) for i in range(2)])
    expected = mean_colour(None, normalize(fitted.float() / 255, list(MEAN), list(STD)))
    torch.testing.assert_close(features, expected)


def test_the_model_runs_in_eval_mode_and_is_left_as_it_was(vit):
    vit.train()
    vit.blocks[1].eval()
    vit.head.requires_grad_(False)
    modes = [module.training for module in vit.modules()]
    seen = []
    extract(vit, make_set(4), features=lambda model, images: (seen.append(model.training), mean_colour(0, images))[1])
    assert seen == [False]
    assert [module.training for module in vit.modules()] == modes
    assert all(p.grad is None for p in vit.parameters())


def test_a_model_in_bfloat16_gives_float32_features(vit):
    (features,) = extract(vit.bfloat16(), make_set(2))
    assert features.dtype == torch.float32


def test_a_model_of_another_library_needs_a_function():
    class Another(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 7, 32)

        def forward(self, images):
            return self.layer(images)

    with pytest.raises(TypeError, match=r"model \(Another\) has no forward_features and forward_head.*give `features`"):
        extract(Another(), make_set(2))
    (features,) = extract(Another(), make_set(2), features=lambda model, images: model(images).flatten(1))
    assert features.shape == (2, 7)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3)])
def test_anything_but_a_row_an_image_is_refused(vit, shape):
    with pytest.raises(ValueError, match=r"features gives .* for 2 images, not \(B, D\)"):
        extract(vit, make_set(2), features=lambda *_: torch.zeros(shape))
