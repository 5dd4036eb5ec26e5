"""Running a model from a block on, on kept tokens, gives what the whole model gives, in every library."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from conftest import make_images, make_timm, make_vit
from models.test_classifier import ROPE, transformers_vit
from patchmerger import insert
from patchmerger.acceleration.rear_half import RearHalf
from patchmerger.insertion.inserted import mergers
from patchmerger.mechanism.modes import learning_mode
from patchmerger.models.classifier import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = {
    "class token": make_vit,
    "registers": lambda: make_vit("registers, LayerScale"),
    "attention pooling": lambda: make_vit("attention pooling"),
    "RoPE": lambda: make_timm("vit_small_patch16_rope_224", **ROPE),
    "transformers": transformers_vit,
    "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5).eval(),
}


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_whole_model(name, after):
    plain = Classifier(MODELS[name]())
    merged = Classifier(insert(copy.deepcopy(plain.net), num_tokens=4, after=2)).requires_grad_(False)
    batches = [make_images(3), make_images(2).flip(0)]
    rears = RearHalf(plain, after), RearHalf(merged, after)
    with torch.no_grad():
        of_plain = [rears[0].front(plain, images) for images in batches]
        of_merged = [rears[1].front(merged, images) for images in batches]
        mergers(merged.net)[0].module.weight.mul_(-2)
        for images, front, same in zip(batches, of_plain, of_merged, strict=True):
            assert torch.equal(front.tokens, same.tokens)
            for model, rear in zip((plain, merged), rears, strict=True):
                for ours, whole in zip(rear.run(model, front.tokens), model.with_features(images), strict=True):
                    assert torch.allclose(ours, whole, rtol=1e-5, atol=1e-6)
    assert not any({"forward", "merge"} & set(vars(block)) for block in merged.modules())


def test_blocks_up_to_the_merge_do_not_run_and_only_what_follows_is_trained():
    model = insert(make_vit(), num_tokens=4, after=2)
    classifier = Classifier(model)
    rear = RearHalf(classifier, 2)
    tokens = rear.front(classifier, make_images()).tokens.detach()
    runs = []
    for number in range(4):
        model.blocks[number].attn.register_forward_hook(lambda *_, number=number: runs.append(number))
    rear.run(classifier, tokens)
    assert runs == [2, 3]
    trained = rear.trained(classifier, tokens)
    assert {name.split(".")[0] for name in trained} == {"blocks", "norm", "head"}
    assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"1", "2", "3"}
    assert all(".merger." in name for name in trained if name.startswith("blocks.1"))
    rear.check(classifier, make_images())


def test_gradients_of_the_queries_are_those_of_the_whole_model():
    model = insert(make_vit(), num_tokens=4, after=2)
    classifier, images = Classifier(model), make_images()
    weight = mergers(model)[0].module.weight
    (expected,) = torch.autograd.grad(classifier(images).square().sum(), weight)
    rear = RearHalf(classifier, 2)
    tokens = rear.front(classifier, images).tokens.detach()
    (ours,) = torch.autograd.grad(rear.run(classifier, tokens)[0].square().sum(), weight)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-8)


def test_a_second_merge_runs_with_the_rest():
    classifier = Classifier(insert(make_vit(), num_tokens=[8, 4], after=[1, 3]))
    rear = RearHalf(classifier, 1)
    front = rear.front(classifier, make_images())
    assert front.tokens.shape[1] == 17
    assert torch.allclose(rear.run(classifier, front.tokens)[0], front.scores, atol=1e-6)


class LooksBack(nn.Module):
    """A head that looks at the image again."""

    def __init__(self, head, seen):
        super().__init__()
        self.head, self.seen = head, seen

    def forward(self, x):
        return self.head(x) * (1 + self.seen[-1].mean())


def test_a_model_that_needs_more_than_tokens_is_refused():
    model = insert(make_vit(), num_tokens=4, after=2)
    seen = []
    model.patch_embed.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.norm = LooksBack(model.norm, seen)
    classifier = Classifier(model)
    with pytest.raises(ValueError, match=r"recovery.scope \('rear'\): what follows block 2 .* more than .* 'all'"):
        RearHalf(classifier, 2).check(classifier, 100 * make_images() + 50)


def test_after_the_embedding_all_blocks_are_trained():
    classifier = Classifier(insert(make_vit(), num_tokens=4, after=2))
    rear = RearHalf(classifier, 0)
    rear.check(classifier, make_images())
    trained = rear.trained(classifier, rear.front(classifier, make_images()).tokens.detach())
    embedding = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {name for name, _ in classifier.net.named_parameters()} - trained == embedding


@pytest.mark.parametrize("after", [-1, 4])
def test_a_block_must_follow(after):
    with pytest.raises(ValueError, match=rf"after \({after}\) must be a block from 1 to 3"):
        RearHalf(Classifier(make_vit()), after)


def test_what_learns_in_train_mode_alone_is_trained():
    classifier = Classifier(insert(make_vit(), num_tokens=4, after=2, reducer="dynamicvit")).eval()
    rear = RearHalf(classifier, 2)
    trained = rear.trained(classifier, rear.front(classifier, make_images()).tokens.detach())
    (merger,) = mergers(classifier.net)
    assert {f"{merger.name}.{name}" for name, _ in merger.module.named_parameters()} <= trained
    assert not merger.module.training
    learning_mode(classifier)
    assert {name for name, module in classifier.named_modules() if module.training} == {
        f"net.{merger.name}{'.' * bool(name)}{name}" for name, _ in merger.module.named_modules()
    }
