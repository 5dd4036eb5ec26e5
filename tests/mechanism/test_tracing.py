"""Symbolic tracing (torch.fx) and feature extractors made of it work on merged models where they do on plain ones."""

import copy

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor as extractor_of_timm
from torchvision.models import VisionTransformer
from torchvision.models.feature_extraction import create_feature_extractor

from conftest import make_images, make_vit
from hosts.families import FAMILIES, encoder_of, family_images
from hosts.merged_families import make_merged, make_plain
from patchmerger import PatchMerger, insert
from patchmerger.reducers import AveragePool

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(
        "ignore:Using a non-tuple:UserWarning", "ignore:torch.searchsorted:UserWarning"
    ),  # timm's
]


def fx_traces_timm() -> bool:
    """torch 2.8 does not: there ``is_causal`` of timm's attention must not be a proxy, nor a device an attribute."""
    try:
        torch.fx.symbolic_trace(make_vit())
    except TypeError:
        return False
    return True


needs_fx = pytest.mark.skipif(not fx_traces_timm(), reason="this torch does not trace plain models of timm")

# What even plain models cannot: their forward asks for the numbers in a tensor.
UNTRACED = {"Qwen3", "Gemma 4", *(name for name in FAMILIES if "NaFlex" in name)}
# timm's tracer keeps such parts whole.
BY_TIMM = ["RoPE axial", "NaFlex average", "NaFlex MAP", "Qwen3"]


@needs_fx
@pytest.mark.parametrize("prior", [None, "auto"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_symbolic_trace_of_timm_families(name, prior):
    images, model = family_images(), make_merged(name, prior=prior).eval()
    if name in UNTRACED:
        with pytest.raises(torch.fx.proxy.TraceError, match="symbolically traced"):
            torch.fx.symbolic_trace(make_plain(name))
        return
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))


@needs_fx
@pytest.mark.parametrize("prior", [None, "auto"])
@pytest.mark.parametrize("name", BY_TIMM)
@torch.no_grad()
def test_features_by_timm(name, prior):
    model = make_merged(name, prior=prior).eval()
    path = "encoder.blocks.3" if encoder_of(model) is not model else "blocks.3"
    extractor = extractor_of_timm(copy.deepcopy(model), [path])
    kept = []
    model.get_submodule(path).register_forward_hook(lambda module, args, output: kept.append(output))
    model(family_images())
    given = extractor(family_images())
    (given,) = given.values() if isinstance(given, dict) else given
    torch.testing.assert_close(given, kept[0])


@needs_fx
@pytest.mark.parametrize(
    "options", [{}, {"prior": "grid"}, {"prior": "rows", "num_heads": 2}, {"reducer": AveragePool(5)}], ids=str
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
@torch.no_grad()
def test_features_by_torchvision(library, options):
    if library == "timm":
        model, path = make_vit(), "blocks.3"
    else:
        model = VisionTransformer(32, 8, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5).eval()
        path = "encoder.layers.encoder_layer_3"
    insert(model, 5, **copy.deepcopy(options))
    features = create_feature_extractor(model, [path])(make_images())[path]
    assert features.shape[1:] == (1 + 5, 32)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(make_images()), model(make_images()))


@needs_fx
@pytest.mark.parametrize(
    "options",
    [
        {"prior": "grid"},
        {"num_tokens": (8, 4), "after": (1, 2), "prior": "grid"},
        {"num_tokens": 8, "reducer": AveragePool(8)},
    ],
    ids=str,
)
@torch.no_grad()
def test_symbolic_trace_with_rotary_positions(options):
    model = insert(make_plain("RoPE axial"), **copy.deepcopy(options)).eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(family_images()), model(family_images()))


@needs_fx
@torch.no_grad()
def test_a_traced_graph_places_the_patches_of_each_size():
    model = make_merged("DINOv3", prior="auto").eval()
    images = [torch.randn(2, 3, *size) for size in ((48, 48), (40, 64), (72, 48))]
    model(images[0])  # a size that was seen before must not stay in the graph
    traced = torch.fx.symbolic_trace(model)
    for batch in images:
        torch.testing.assert_close(traced(batch), model(batch))
    assert torch.equal(copy.deepcopy(model)(images[1]), model(images[1]))


@needs_fx
@pytest.mark.parametrize("reducer", ["tome", "topk", "evit", "ats"])
def test_what_works_inside_of_blocks_is_refused_by_name(reducer):
    with pytest.raises(TypeError, match=r"cannot be traced symbolically .*use torch\.export\.export"):
        torch.fx.symbolic_trace(insert(make_vit(), 4, reducer=reducer))


@needs_fx
def test_gradients_through_a_traced_model():
    model = make_merged("RoPE mixed").eval()
    torch.fx.symbolic_trace(model)(family_images()).square().sum().backward()
    traced = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(family_images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(traced[name], parameter.grad)


@torch.no_grad()
def test_a_merger_alone_is_traced_with_padding():
    merger, x = PatchMerger(8, 3).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    traced = torch.fx.symbolic_trace(merger, concrete_args={"positions": None, "return_weights": False})
    torch.testing.assert_close(traced(x, mask), merger(x, mask))
    torch.testing.assert_close(traced(x, None), merger(x))


@pytest.mark.filterwarnings("ignore")
def test_scripting_is_refused_and_what_it_names_works():
    model = insert(timm.create_model("test_vit").eval(), 4)
    with pytest.raises(TypeError, match=r"VisionTransformer with a merger .*cannot be scripted: use torch\.jit\.trace"):
        torch.jit.script(model)
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, images)(images), model(images))
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))
