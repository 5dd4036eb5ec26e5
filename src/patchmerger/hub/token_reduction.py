"""The public checkpoints of *Which Tokens to Use?* (arXiv 2308.04657): DeiT with PatchMerger, Top-K, EViT or ToMe."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from patchmerger.hub.checkpoints import build_from_weights
from patchmerger.hub.conversion import read_pickle
from patchmerger.insertion.inserted import mergers
from patchmerger.insertion.inserting import insert
from patchmerger.merger import PatchMerger

_FILE = "best_checkpoint.pth"
_QUERIES = re.compile(r"cluster_layers\.(\d+)\.queries")
_METHODS = ("patchmerger", "topk", "evit", "tome")
# The DeiT models that they start from, by width; other sizes are described by their weights alone.
_ARCHITECTURES = {192: "deit_tiny_patch16_224", 384: "deit_small_patch16_224", 768: "deit_base_patch16_224"}
_HEAD_WIDTH = 64


def load_token_reduction(
    path: str | os.PathLike[str],
    *,
    method: str | None = None,
    keep_rate: float | Sequence[float] | None = None,
    reduction_loc: Sequence[int] | None = None,
    num_heads: int | None = None,
    file: str = _FILE,
) -> nn.Module:
    """Load a checkpoint of the code of *Which Tokens to Use?* as a timm model with reducers of this library.

    Of weights and their moving average, which such a file has both, those are taken that it says were better. Method,
    keep rate and places are read off the file where it has them. In that code a merger stands before block
    ``reduction_loc[i]``, counted from 0, and the class token passes by; scores and values are normalised, with eps 1e-5
    and no scale. Top-K, EViT and ToMe work inside that block. The i-th reduction leaves ``int(N · keep_rate^(i + 1))``
    tokens, EViT's fused one not counted; ToMe never merges more than half in one block.

    A file is read without running code in it (``weights_only``).

    Args:
        path: A checkpoint, a folder that holds ``file``, or ``"user/name"`` on the Hugging Face Hub.
        method: ``"patchmerger"``, ``"topk"``, ``"evit"`` or ``"tome"``, where the file does not say it.
        keep_rate: Where the file does not say it: one rate, or one for each place (then of all N patches).
        reduction_loc: Where the file does not say it; ``(3, 6, 9)`` if nothing does.
        num_heads: Of the attention; by default one for 64 features, as in DeiT.
        file: The file in a folder or on the Hub.

    Returns:
        The model in eval mode. Its merged tokens cost what they cost there; ``patchmerger.save`` keeps it.

    Raises:
        FileNotFoundError: There is no such file, here or on the Hub.
        ValueError: It is no such checkpoint, of another method, or does not say what it must.
    """
    source = _find(path, file)
    weights, said = _read(source)
    queries = {int(m[1]): tensor for key, tensor in weights.items() if (m := _QUERIES.fullmatch(key))}
    method = method or ("patchmerger" if queries else str(said.get("model", "")).split("_")[0])
    if method not in _METHODS:
        raise ValueError(
            f"method ({method!r}) of {source} is none of {', '.join(_METHODS)}, which are read; name it if it is one"
        )
    plain = {key: tensor for key, tensor in weights.items() if not key.startswith("cluster_layers.")}
    width = int(_needed(plain, "cls_token", source).shape[-1])
    heads = num_heads or max(1, width // _HEAD_WIDTH)
    architecture = _ARCHITECTURES.get(width, "deit_tiny_patch16_224")
    model = build_from_weights(plain, architecture, _arguments(plain, width, heads, source), source)
    places = [int(loc) for loc in (reduction_loc or said.get("reduction_loc") or (3, 6, 9))]
    if method == "patchmerger":
        return _with_mergers(model, weights, queries, places, source)
    rates = keep_rate if keep_rate is not None else said.get("keep_rate")
    if rates is None:
        raise ValueError(f"keep_rate (None) must be given: {source} does not say it")
    counts = _num_tokens(method, model.patch_embed.num_patches, rates, len(places))  # type: ignore[union-attr, arg-type]
    return insert(model, counts, [place + 1 for place in places], reducer=method).eval()  # type: ignore[arg-type]


def _find(path: str | os.PathLike[str], file: str) -> Path:
    found = Path(path).expanduser()
    if found.is_dir():
        found = found / file
    if found.is_file():
        return found
    if isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not found.suffix:
        try:
            return Path(hf_hub_download(path, file))
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise FileNotFoundError(f"path ({path}): the Hugging Face Hub gives no {file} of it: {error}") from error
    raise FileNotFoundError(f"path ({path}) is no file, no folder with {file}, and no name on the Hugging Face Hub")


def _read(source: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The better weights of a checkpoint, and the arguments it was trained with."""
    content = read_pickle(source)
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, not a checkpoint")
    arguments = content.get("args")
    said = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    if "model" in content:
        better = "model_ema" if content.get("ema_best") else "model"
        content = _needed(content, better, source)
    weights = {key: tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    return weights, said


def _needed(content: Mapping[str, Any], key: str, source: Path) -> Any:
    if key not in content:
        raise ValueError(f"{source} has no {key}: it is no checkpoint of a DeiT from the code of arXiv 2308.04657")
    return content[key]


def _arguments(weights: Mapping[str, Tensor], width: int, heads: int, source: Path) -> dict[str, Any]:
    """Arguments of timm for a DeiT of another size than its three."""
    depth = 1 + max((int(key.split(".")[1]) for key in weights if key.startswith("blocks.")), default=-1)
    patch = _needed(weights, "patch_embed.proj.weight", source)
    hidden = _needed(weights, "blocks.0.mlp.fc1.weight", source)
    places = _needed(weights, "pos_embed", source).shape[1] - 1
    found: dict[str, Any] = {"img_size": round(places**0.5) * patch.shape[-1], "num_heads": heads}
    found |= {"embed_dim": width, "depth": depth, "patch_size": patch.shape[-1], "mlp_ratio": len(hidden) / width}
    deit = {"img_size": 224, "depth": 12, "patch_size": 16, "mlp_ratio": 4.0, "num_heads": width // _HEAD_WIDTH}
    if width in _ARCHITECTURES:
        deit["embed_dim"] = width
    return {key: value for key, value in found.items() if deit.get(key) != value}


def _with_mergers(
    model: nn.Module, weights: Mapping[str, Tensor], queries: Mapping[int, Tensor], places: Sequence[int], source: Path
) -> nn.Module:
    if sorted(queries) != list(range(len(places))):
        raise ValueError(
            f"reduction_loc ({list(places)}) must name as many blocks as {source} has mergers ({len(queries)})"
        )
    if min(places) < 1:
        raise ValueError(f"reduction_loc ({list(places)}) must be from 1: before block 0 nothing has run")
    counts = [len(queries[number]) for number in range(len(places))]
    insert(model, counts, places, norm="both", prior=None)
    for number, merger in enumerate(mergers(model)):
        module = merger.module
        if not isinstance(module, PatchMerger) or module.norm is None:
            raise TypeError(f"{merger.name} must be a PatchMerger with a norm")
        named = {"weight": queries[number]}
        for part in ("weight", "bias"):
            named[f"norm.{part}"] = _needed(weights, f"cluster_layers.{number}.norm.{part}", source)
        module.load_state_dict(named)
        module.norm.eps = 1e-5
    return model.eval()


def _num_tokens(method: str, num_patches: int, keep_rate: float | Sequence[float], places: int) -> list[int]:
    """The tokens that go on after each reduction."""
    rates = [keep_rate] if isinstance(keep_rate, float | int) else list(keep_rate)
    if len(rates) == 1:
        rates = [rates[0] ** (place + 1) for place in range(places)]
    if len(rates) != places:
        raise ValueError(f"keep_rate ({keep_rate}) must be one rate, or one for each of the {places} places")
    targets = [int(num_patches * rate) for rate in rates]
    if method == "evit":
        return [target + 1 for target in targets]  # the fused token
    if method == "tome":
        arriving, counts = num_patches, []
        for before, target in zip([num_patches, *targets], targets, strict=False):
            arriving -= min(before - target, arriving // 2)
            counts.append(arriving)
        return counts
    return targets
