import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from conftest import SIZE, make_vit
from patchmerger.hosts.example_inputs import example_input


def test_of_timm():
    example = example_input(make_vit(), batch_size=3)
    assert torch.equal(example.images, torch.zeros(3, 3, 32, 32))
    assert example.run(make_vit()).shape == (3, 5)
    gray = timm.create_model("vit_tiny_patch16_224", **SIZE, in_chans=1)
    assert example_input(gray, 64).images.shape == (1, 1, 64, 64)


def test_noise_comes_from_the_seed():
    model = make_vit().to(torch.bfloat16)
    first, again, other = (example_input(model, seed=seed).images for seed in (1, 1, 2))
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_of_torchvision():
    model = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    assert example_input(model).run(model).shape == (1, 1000)


def test_of_a_model_of_ones_own():
    model = nn.Sequential(nn.Conv2d(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"image_size \(None\) must be given: Sequential does not say"):
        example_input(model)
    assert example_input(model, (16, 8)).images.shape == (1, 1, 16, 8)


@pytest.mark.parametrize(
    ("family", "small"),
    [
        ("ViT", {"image_size": 32}),
        ("Siglip2Vision", {"num_patches": 16}),
        ("AST", {"num_mel_bins": 24, "max_length": 32, "frequency_stride": 8, "time_stride": 8}),
    ],
)
def test_of_transformers(family, small):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{family}Config")(**size, **small, patch_size=8)
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        output = example_input(model, batch_size=2, seed=0).run(model)
    assert output.last_hidden_state.shape[0] == 2
    assert output.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "Siglip2Model", "AltCLIPModel", "BlipModel"])
@torch.no_grad()
def test_of_two_towers(name):
    pytest.importorskip("transformers")
    from hosts.tiny import FAMILIES, insert_into, make_model

    if name not in FAMILIES:
        pytest.skip(f"this transformers has no {name}")
    model = insert_into(name, make_model(name), 3)
    output = example_input(model, batch_size=2, seed=0).run(model)
    assert output.logits_per_image.shape == (2, 1)
    assert output.logits_per_image.isfinite().all()
    example, encoder = example_input(model, batch_size=2, seed=0).images_alone(model)
    features = example.run(encoder)
    features = getattr(features, "pooler_output", features)
    assert features.shape == output.image_embeds.shape
    torch.testing.assert_close(features / features.norm(dim=-1, keepdim=True), output.image_embeds)
