"""Models as people use them, at full width and depth: ten steps on real images with a merger lower the loss."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.data import DataSettings, read_images
from patchmerger.insertion import insert
from patchmerger.insertion.inserted import mergers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLASSES, IMAGE_SIZE = 10, 112
# In training it stretches its grid by up to 2: merged tokens have a centroid from 9 patches a side on.
LARGER = {"transformers DINOv3-S": 160}
# Its initial weights are larger, so that the usual rate overshoots.
SLOWER = {"transformers CLIP-B": 1e-4}


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Sixteen images of CIFAR-10, and their labels."""
    if not (os.environ.get("PATCHMERGER_DATA") and os.path.isdir(f"{os.environ['PATCHMERGER_DATA']}/cifar10")):
        pytest.skip("$PATCHMERGER_DATA/cifar10 is not there")
    images = read_images(DataSettings(source="uoft-cs/cifar10", memory_gib=0)).sets["test"]
    pixels = torch.stack([images.images[i] for i in range(16)]).float() / 255
    labels = torch.as_tensor(images.targets[:16])
    return pixels.sub(0.5).div(0.25), labels


def of_timm(architecture: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(architecture, num_classes=CLASSES, img_size=IMAGE_SIZE)


class WithHead(nn.Module):
    """A transformers tower and a linear head, for those that have no classifier of their own."""

    def __init__(self, tower: nn.Module, dim: int) -> None:
        super().__init__()
        self.tower, self.head = tower, nn.Linear(dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.tower(pixel_values=images).pooler_output)


def of_transformers(family: str, model: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        settings = getattr(transformers, f"{family}Config")(**{"image_size": IMAGE_SIZE, **config})
        if family in ("SiglipVision", "CLIPVision"):
            full = getattr(transformers, family.replace("Vision", "Config"))(vision_config=settings.to_dict())
            full.num_labels = CLASSES
            return getattr(transformers, model)(full)
        settings.num_labels = CLASSES
        built = getattr(transformers, model)(settings)
        return built if "Classification" in model else WithHead(built, settings.hidden_size)

    return build


SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
MODELS = {
    "timm DINOv3-S": of_timm("vit_small_patch16_dinov3"),
    "timm EVA-02-S": of_timm("eva02_small_patch14_224"),
    "timm SigLIP-B": of_timm("vit_base_patch16_siglip_224"),
    "timm CLIP-B": of_timm("vit_base_patch16_clip_224"),
    "timm DINOv2-S with registers": of_timm("vit_small_patch14_reg4_dinov2"),
    "transformers DINOv3-S": of_transformers(
        "DINOv3ViT", "DINOv3ViTModel", image_size=LARGER["transformers DINOv3-S"], num_register_tokens=4, **SMALL
    ),
    "transformers SigLIP-B": of_transformers("SiglipVision", "SiglipForImageClassification", patch_size=16, **BASE),
    "transformers CLIP-B": of_transformers("CLIPVision", "CLIPForImageClassification", patch_size=16, **BASE),
    "transformers DINOv2-S with registers": of_transformers(
        "Dinov2WithRegisters",
        "Dinov2WithRegistersForImageClassification",
        hidden_size=384,
        num_attention_heads=6,
        patch_size=14,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_lower_the_loss(name: str, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    images, labels = F.interpolate(batch[0], size=LARGER.get(name, IMAGE_SIZE), mode="bicubic"), batch[1]
    inner = model.tower if isinstance(model, WithHead) else model
    insert(inner, num_tokens=8)
    (merger,) = mergers(inner)
    start = merger.module.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=SLOWER.get(name, 3e-4))
    losses = []
    for _ in range(11):
        output = model(images)
        loss = F.cross_entropy(getattr(output, "logits", output), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], losses
    assert not torch.equal(merger.module.weight, start)
