"""Vision Transformers written by hand, as a user might."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, PATCHES = 32, 16


class MyViT(nn.Module):
    """A class token, 16 patches of 8 × 8 pixels, blocks of torch."""

    def __init__(self, depth: int = 4, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Conv2d(3, WIDTH, kernel_size=8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 1 + PATCHES, WIDTH))
        layers = [
            nn.TransformerEncoderLayer(WIDTH, 2, 64, batch_first=batch_first, norm_first=True) for _ in range(depth)
        ]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 5)

    def tokens(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1) + self.places

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        x = x if self.batch_first else x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0] if self.batch_first else x[0])


class RopeBlock(nn.Module):
    """One attention with rotary positions for the patches, not for the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, 1 + N, d)
        if rope is not None:
            q, k = (torch.cat((t[:, :, :1], turn(t[:, :, 1:], rope)), dim=2) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y)


def turn(x: Tensor, rope: Tensor) -> Tensor:
    sin, cos = rope.chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class MyRopeViT(nn.Module):
    """A class token, and a rotary table that every block gets."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, kernel_size=8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.blocks = nn.ModuleList(RopeBlock() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 5)

    def table(self) -> Tensor:
        """[sin | cos], (N, 2 · 16): half of the bands turn with the row, half with the column."""
        row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        bands = torch.tensor([1.0, 0.5, 0.25, 0.125])
        phases = torch.cat((row.reshape(-1, 1) * bands, column.reshape(-1, 1) * bands), dim=-1)  # (N, 8)
        phases = torch.cat((phases, phases), dim=-1)  # (N, 16)
        return torch.cat((phases.sin(), phases.cos()), dim=-1)

    def tokens(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        x, rope = self.tokens(images), self.table()
        for block in self.blocks:
            x = block(x, rope=rope)
        return self.head(x[:, 0])
