"""A tiny ViT trained on the digits for a few seconds, once for all tests of a process."""

import copy
from functools import cache

import timm
import torch
from torch import nn

from patchmerger.data import DataSettings, load_images


def trained_vit() -> nn.Module:
    """A copy of it, in eval mode: 16 patches and a class token, 4 blocks of width 32, some 80% right."""
    return copy.deepcopy(_trained())


@cache
def _trained() -> nn.Module:
    digits = load_images(DataSettings(), seed=0).train
    images = (digits.gather(range(len(digits))).float() / 255 - 0.5) / 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=8, patch_size=2, embed_dim=32, depth=4, num_heads=2, num_classes=10
        )
        model.pretrained_cfg.update(mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        epochs = 8
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * (len(images) // 64))
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for rows in order[: len(order) // 64 * 64].view(-1, 64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[rows]), digits.targets[rows]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()
