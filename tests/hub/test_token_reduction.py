"""Checkpoints in the format of the code of arXiv 2308.04657, against an independent forward of the same equations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import make_images
from patchmerger.hub import load, load_token_reduction, save
from patchmerger.insertion.inserted import mergers

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, HEADS, DEPTH, CLASSES = 16, 2, 4, 5
PLACES, RATE, PATCHES = (1, 2, 3), 0.7, 16
COUNTS = [11, 7, 5]  # int(16 · 0.7^i)


def deit_weights(seed: int) -> dict[str, Tensor]:
    """Keys and shapes as timm 0.4 has them."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + PATCHES, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 8, 8),
        "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,),
    }  # fmt: skip
    for i in range(DEPTH):
        for name, outputs, inputs in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{i}.{name}.weight"] = (outputs * WIDTH, inputs * WIDTH)
            shapes[f"blocks.{i}.{name}.bias"] = (outputs * WIDTH,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (WIDTH,)
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.4 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def with_mergers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    for number, count in enumerate(COUNTS):
        weights[f"cluster_layers.{number}.queries"] = torch.randn(count, WIDTH, generator=generator)
        weights[f"cluster_layers.{number}.norm.weight"] = torch.randn(WIDTH, generator=generator)
        weights[f"cluster_layers.{number}.norm.bias"] = torch.randn(WIDTH, generator=generator)
    return weights


def write(path: Path, method: str, *, ema_best: bool = False) -> dict[str, Tensor]:
    """A checkpoint; gives the better ones of its weights."""
    made = [deit_weights(seed) for seed in (0, 1)]
    if method == "patchmerger":
        made = [with_mergers(weights) for weights in made]
    args = argparse.Namespace(model=f"{method}_small_patch16_224", keep_rate=[RATE], reduction_loc=list(PLACES))
    torch.save({"model": made[0], "model_ema": made[1], "ema_best": ema_best, "args": args, "epoch": 3}, path)
    return made[int(ema_best)]


def norm(x: Tensor, w: dict[str, Tensor], name: str, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def reference(weights: dict[str, Tensor], images: Tensor, method: str) -> Tensor:
    """One image at a time, in float64, from the equations."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    return torch.stack([_of_one(w, image.double(), method) for image in images])


def _of_one(w: dict[str, Tensor], image: Tensor, method: str) -> Tensor:
    patches = F.conv2d(image[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8)
    x = torch.cat((w["cls_token"][0], patches[0].flatten(1).T)) + w["pos_embed"][0]  # (1 + N, D)
    sizes = torch.ones(len(x), dtype=torch.float64)
    for i in range(DEPTH):
        stage = PLACES.index(i) if i in PLACES else None
        if method == "patchmerger" and stage is not None:
            tokens = norm(x[1:], w, f"cluster_layers.{stage}.norm", 1e-5)
            x = torch.cat((x[:1], (w[f"cluster_layers.{stage}.queries"] @ tokens.T).softmax(dim=1) @ tokens))
        q, k, v = linear(norm(x, w, f"blocks.{i}.norm1"), w, f"blocks.{i}.attn.qkv").chunk(3, dim=1)
        heads, rows, width = [], 0.0, WIDTH // HEADS
        bias = sizes.log() if method == "tome" else 0.0
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            rows_of_head = (q[:, part] @ k[:, part].T * width**-0.5 + bias).softmax(dim=1)
            heads.append(rows_of_head @ v[:, part])
            rows = rows + rows_of_head[0, 1:] / HEADS
        x = x + linear(torch.cat(heads, dim=1), w, f"blocks.{i}.attn.proj")
        if stage is not None and method in ("topk", "evit"):
            kept = sorted(sorted(range(len(x) - 1), key=lambda n: -float(rows[n]))[: COUNTS[stage]])
            rest = [n for n in range(len(x) - 1) if n not in kept]
            fused = [sum(rows[n] * x[1 + n] for n in rest)[None]] if method == "evit" else []
            x = torch.cat((x[:1], x[1:][kept], *fused))
        if stage is not None and method == "tome":
            x, sizes = _merged(x, sizes, sum(k[:, h * width : (h + 1) * width] for h in range(HEADS)), COUNTS[stage])
        x = x + linear(
            F.gelu(linear(norm(x, w, f"blocks.{i}.norm2"), w, f"blocks.{i}.mlp.fc1")), w, f"blocks.{i}.mlp.fc2"
        )
    return linear(norm(x, w, "norm")[0], w, "head")


def _merged(x: Tensor, sizes: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One step of bipartite matching over all tokens, of which the class token, the first source, never merges."""
    sources, destinations = list(range(2, len(x), 2)), list(range(1, len(x), 2))
    best = {
        s: max(destinations, key=lambda d, s=s: float(F.cosine_similarity(keys[s], keys[d], dim=0))) for s in sources
    }
    alike = sorted(sources, key=lambda s: -float(F.cosine_similarity(keys[s], keys[best[s]], dim=0)))
    gone = alike[: len(x) - 1 - count]
    total, x = sizes.clone(), x * sizes[:, None]
    for s in gone:
        x[best[s]] = x[best[s]] + x[s]
        total[best[s]] += sizes[s]
    left = [0, *(s for s in sources if s not in gone), *destinations]
    return x[left] / total[left, None], total[left]


@pytest.mark.parametrize("method", ["patchmerger", "topk", "evit", "tome"])
@pytest.mark.parametrize("ema_best", [False, True])
def test_outputs_are_those_of_the_equations(method, ema_best, tmp_path):
    weights = write(tmp_path / "best_checkpoint.pth", method, ema_best=ema_best)
    model = load_token_reduction(tmp_path, num_heads=HEADS)
    images = make_images()
    with torch.no_grad():
        expected = reference(weights, images, method)
        torch.testing.assert_close(model(images).double(), expected, rtol=1e-4, atol=1e-4)
    inside = method != "patchmerger"
    assert [m.after for m in mergers(model)] == [place + inside for place in PLACES]
    assert [m.num_tokens for m in mergers(model)] == [count + (method == "evit") for count in COUNTS]
    if not ema_best:
        save(model, tmp_path / "model")
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "model")(images), model(images))


def test_a_flat_state_dict_with_what_it_does_not_say(tmp_path):
    path = tmp_path / "topk.pth"
    torch.save(deit_weights(0), path)
    given: dict[str, Any] = {"method": "topk", "reduction_loc": PLACES, "num_heads": HEADS}
    model = load_token_reduction(path, keep_rate=RATE, **given)
    with torch.no_grad():
        expected = reference(deit_weights(0), make_images(), "topk")
        torch.testing.assert_close(model(make_images()).double(), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"keep_rate \(None\) must be given"):
        load_token_reduction(path, **given)
    with pytest.raises(ValueError, match=r"keep_rate \(\[0\.5, 0\.2\]\) must be one rate, or one for each of the 3"):
        load_token_reduction(path, keep_rate=[0.5, 0.2], **given)
    with pytest.raises(ValueError, match=r"method \(''\) of .* is none of patchmerger, topk, evit, tome"):
        load_token_reduction(path)


def test_files_that_are_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path \(.*none\.pth\) is no file"):
        load_token_reduction(tmp_path / "none.pth")
    write(tmp_path / "sit.pth", "sit")
    with pytest.raises(ValueError, match=r"method \('sit'\)"):
        load_token_reduction(tmp_path / "sit.pth")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"broken\.pth is damaged, or no checkpoint"):
        load_token_reduction(tmp_path / "broken.pth")
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth has no cls_token"):
        load_token_reduction(tmp_path / "other.pth", method="topk")
    write(tmp_path / "merged.pth", "patchmerger")
    with pytest.raises(ValueError, match=r"reduction_loc \(\[1, 2\]\) must name as many blocks as .* mergers \(3\)"):
        load_token_reduction(tmp_path / "merged.pth", reduction_loc=(1, 2), num_heads=HEADS)


def test_tome_merges_at_most_half_of_the_tokens_in_a_block(tmp_path):
    torch.save(deit_weights(0), tmp_path / "tome.pth")
    model = load_token_reduction(
        tmp_path / "tome.pth", method="tome", keep_rate=0.25, reduction_loc=PLACES, num_heads=HEADS
    )
    assert [m.num_tokens for m in mergers(model)] == [8, 5, 4]  # of 16: as many as 12, 3 and 1 less, at most half
