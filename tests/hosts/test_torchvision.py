"""torchvision's Vision Transformer takes a merger like timm's; its other models are refused."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from conftest import make_images
from patchmerger.hosts import UnsupportedModelError, find_host
from patchmerger.insertion import insert, remove
from patchmerger.insertion.inserted import mergers
from patchmerger.merger import PatchMerger

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = [
    "vit_b_16",
    "vit_b_32",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_l_16", "vit_l_32", "vit_h_14")),
]


def make_plain(**kwargs) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
        model = VisionTransformer(**{**sizes, "num_classes": 5, **kwargs})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def by_hand(model: VisionTransformer, images: Tensor, places: dict[int, nn.Module]) -> Tensor:
    """The forward pass of a merged model, from the parts of a plain one."""
    x = model.conv_proj(images).flatten(2).transpose(1, 2)
    x = torch.cat((model.class_token.expand(len(x), -1, -1), x), dim=1) + model.encoder.pos_embedding
    for number, block in enumerate(model.encoder.layers, start=1):
        x = block(x)
        if number in places:
            x = torch.cat((x[:, :1], places[number](x[:, 1:])), dim=1)
    return model.heads(model.encoder.ln(x)[:, 0])


@pytest.fixture(params=[{}, {"representation_size": 24}], ids=["plain head", "representation"])
def plain(request) -> VisionTransformer:
    return make_plain(**request.param)


def test_merged_output_equals_the_composition_by_hand(plain, images):
    model = insert(copy.deepcopy(plain), (7, 3), after=(1, 3), prior=None)
    places = {found.after: found.module for found in mergers(model)}
    expected = by_hand(plain, images, places)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, plain(images), atol=1e-3)


def test_one_hot_weights_change_nothing(plain):
    image = make_images(1)
    captured = []
    plain.encoder.layers[1].register_forward_hook(lambda module, args, output: captured.append(output))
    expected = plain(image)
    # The queries W = (X⁺)ᵀ give W Xᵀ = I: each of the 16 tokens scores for itself alone.
    queries = torch.linalg.pinv(captured[0][0, 1:].detach().double()).T
    model = insert(copy.deepcopy(plain), 16, norm="none", scale=1e4, init=queries)
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)


def test_the_tokens_are_what_is_said_of_them(images):
    model = insert(make_plain(), 3)
    (found,) = mergers(model)
    assert (found.name, found.tokens_before, found.tokens_after) == ("encoder.layers.encoder_layer_1.merger", 17, 4)
    seen = []
    for block in model.encoder.layers:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    assert [x.shape[1] for x in seen] == [17, 17, 4, 4]
    model(images + 1)
    unchanged = (seen[0] == seen[4]).flatten(2).all(dim=-1)
    assert unchanged.tolist() == [[True] + 16 * [False]] * 2


def test_copies_and_remove(plain, images):
    expected, classes, keys = plain(images), [type(m) for m in plain.modules()], list(plain.state_dict())
    model = insert(copy.deepcopy(plain), 4, prior=None)
    assert {k for k in model.state_dict() if k not in keys} == {
        f"encoder.layers.encoder_layer_1.merger.{name}" for name in ("weight", "norm.weight", "norm.bias")
    }
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(again(images), model(images))
        remove(again)
        assert [type(m) for m in again.modules()] == classes
        assert list(again.state_dict()) == keys
        assert torch.equal(again(images), expected)


def test_gradients_reach_every_parameter(plain, images):
    model = insert(plain.train(), 4)
    model(images).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_features(images):
    model = insert(make_plain(), 4)
    nodes = ["encoder.layers.encoder_layer_0", "encoder.ln"]
    features = create_feature_extractor(model, nodes, tracer_kwargs={"leaf_modules": [PatchMerger]})(images)
    assert [tuple(x.shape) for x in features.values()] == [(2, 17, 32), (2, 5, 32)]


@pytest.mark.parametrize("name", NAMES)
def test_all_of_torchvisions(name):
    with torch.device("meta"):
        model = models.get_model(name)
    (found,) = mergers(insert(model, 8))
    size = model.image_size
    assert (found.after, found.tokens_before) == (len(model.encoder.layers) // 2, model.seq_length)
    assert isinstance(found.module, PatchMerger)
    assert model(torch.empty(1, 3, size, size, device="meta")).shape == (1, 1000)


class MyVisionTransformer(VisionTransformer):
    pass


class MyBlock(EncoderBlock):
    pass


def exchanged_block(model: VisionTransformer) -> VisionTransformer:
    model.encoder.layers[1] = MyBlock(2, 32, 64, 0.0, 0.0)
    return model


def compiled_blocks(model: VisionTransformer) -> VisionTransformer:
    model.encoder.layers = torch.compile(model.encoder.layers, backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.swin_t(), "^SwinTransformer cannot take a merger: it is convolutional or hierarchical"),
        (lambda: models.resnet18(), "^ResNet cannot take a merger: it is convolutional or hierarchical"),
        (
            lambda: MyVisionTransformer(32, 8, 2, 2, 32, 64),
            "^MyVisionTransformer cannot take a merger: it is not known",
        ),
        (lambda: make_plain().encoder, "^Encoder cannot take a merger: it is not known to be a plain Vision Tr"),
        (lambda: exchanged_block(make_plain()), "block 2 is a MyBlock, not known to run on any number of tokens"),
        (lambda: compiled_blocks(make_plain()), "its blocks are a OptimizedModule, not the nn.Sequential"),
    ],
)
def test_refused(make, message):
    with torch.device("meta"):
        model = make()
    with pytest.raises(UnsupportedModelError, match=message):
        insert(model, 4)


def test_the_class_token_is_needed():
    with pytest.raises(ValueError, match="its head reads the class token; use 'keep'"):
        insert(make_plain(), 4, prefix="merge")
    assert find_host(make_plain()).num_patches == 16
