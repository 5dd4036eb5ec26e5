"""Running a merged model from its merge on gives what the whole model gives."""

import pytest
import torch

from conftest import make_images, make_timm, make_vit
from models.test_classifier import ROPE, transformers_vit
from patchmerger import insert
from patchmerger.acceleration.shortcut import Shortcut
from patchmerger.inserted import mergers
from patchmerger.models.classifier import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = {
    "class token": make_vit,
    "registers": lambda: make_vit("registers, LayerScale"),
    "RoPE": lambda: make_timm("vit_small_patch16_rope_224", **ROPE),
    "transformers": transformers_vit,
}


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_whole_model(name, after):
    model = insert(MODELS[name](), num_tokens=4, after=after).requires_grad_(False)
    classifier, batches = Classifier(model), [make_images(3), make_images(2).flip(0)]
    (merger,) = mergers(model)
    shortcut = Shortcut(classifier, merger, batches)
    assert [len(tokens) for tokens in shortcut.tokens] == [3, 2]
    assert all(tokens.shape[1:] == (16, merger.module.dim) for tokens in shortcut.tokens)
    merger.module.weight.mul_(-2)
    for number, images in enumerate(batches):
        for ours, whole in zip(shortcut.run(number), classifier.with_features(images), strict=True):
            assert torch.equal(ours, whole)
    assert not any("forward" in vars(block) for block in model.modules())


def test_the_blocks_before_the_merge_do_not_run_again():
    model = insert(make_vit(), num_tokens=4, after=2)
    shortcut = Shortcut(Classifier(model), mergers(model)[0], [make_images()])
    runs = []
    model.blocks[0].attn.register_forward_hook(lambda *_: runs.append(0))
    model.blocks[2].attn.register_forward_hook(lambda *_: runs.append(2))
    shortcut.run(0)
    assert runs == [2]


def test_gradients_of_the_queries_are_those_of_the_whole_model():
    model = insert(make_vit(), num_tokens=4, after=2)
    classifier, images = Classifier(model), make_images()
    weight = mergers(model)[0].module.weight
    (expected,) = torch.autograd.grad(classifier(images).square().sum(), weight)
    shortcut = Shortcut(classifier, mergers(model)[0], [images])
    (ours,) = torch.autograd.grad(shortcut.run(0)[0].square().sum(), weight)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-8)
