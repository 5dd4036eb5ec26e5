"""Whether weights are those of a model, and what is certain to be made of someone's own."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn

from patchmerger.hub.weights import Weights
from patchmerger.runs.meta_device import meta_device
from patchmerger.runs.text import some_of

# What wrappers put before the names: DataParallel and DDP, torch.compile, Lightning and other trainers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "student.", "teacher.", "state_dict.",
             "model_ema.", "ema.")  # fmt: skip
_BOOKKEEPING = re.compile(r"n_averaged$|(criterion|loss|loss_fn|metrics?|(train|val|valid|test)_\w+)\.")
_CHUNK = re.compile(r"blocks\.\d+\.(?=\d+\.)")
_FOREIGN = {
    "lora_A": "an adapter of PEFT: merge_and_unload() it into its model first",
    "_packed_params": "quantised: take the weights from before that",
    ".merger.": "with a merger: make the model, insert as before, load_state_dict, then patchmerger.save",
    "decoder_blocks.": "a masked autoencoder's pretraining, with its decoder: take the weights that were fine-tuned",
    "embeddings.patch_embeddings": "a model of transformers: give its folder, with the config.json",
    "encoder.layers.encoder_layer_": "a model of torchvision: make it there, load_state_dict, then patchmerger.save",
    "transformer.resblocks.": "a model of open_clip: load it there, or the model of that name in timm",
}


def build_from_weights(
    weights: Mapping[str, Any], architecture: str, model_args: Mapping[str, Any], source: Path
) -> nn.Module:
    """The timm model of someone's own weights, a flat state dict, in eval mode; a warning says what was done to them.

    What is certain is done: a prefix before every name is left out (DataParallel, torch.compile, Lightning), the number
    of classes, the image size and average pooling with ``fc_norm`` are read off the weights where ``model_args`` do not
    say them. ``source`` is their file, for messages.

    Raises:
        ValueError: The weights are of another form or another model; the message names which, and the cure.
    """
    plain = _on_meta(architecture, model_args, source)
    named, said = _without_bookkeeping(dict(weights), plain)
    named, also = _without_prefixes(named, plain, source)
    named, chunks = _without_chunks(named, plain)
    said += also + chunks
    _refuse_foreign(named, plain, source)
    args, also = _arguments_in(named, plain, dict(model_args), source)
    mismatch = state_dict_mismatch(_on_meta(architecture, args, source), named)
    if mismatch:
        raise ValueError(f"{source} does not fit {architecture} with model_args {args}: {_why(named, plain, mismatch)}")
    model: nn.Module = timm.create_model(architecture, **args)
    model.load_state_dict(named)
    if said + also:
        warnings.warn(f"{source}: {'; '.join(said + also)}", stacklevel=4)
    return model.eval()


def state_dict_mismatch(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Names or shapes in which ``weights`` are not the model's; ``None`` where they fit."""
    wanted = model.state_dict()
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    for what, found in (
        ("missing weights", sorted(wanted.keys() - weights.keys())),
        ("unexpected weights", sorted(weights.keys() - wanted.keys())),
        ("other shapes", shapes),
    ):
        if found:
            return f"{what}: {some_of(found, 3)}"
    return None


def without_prefixes(weights: Weights, model: nn.Module, source: Path) -> Weights:
    """Weights without what wrappers put before all names, where they are the model's without it; a warning says so."""
    named, said = _without_prefixes(weights, model, source)
    if said and state_dict_mismatch(model, named) is None:
        warnings.warn(f"{source}: {'; '.join(said)}", stacklevel=3)
        return named
    return weights


def _on_meta(architecture: str, args: Mapping[str, Any], source: Path) -> nn.Module:
    try:
        with meta_device():
            model: nn.Module = timm.create_model(architecture, **args)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{source}: timm cannot make {architecture} with model_args {dict(args)}: {error}") from error
    return model


def _without_prefixes(weights: Weights, model: nn.Module, source: Path) -> tuple[Weights, list[str]]:
    """Leave out what stands before the names, where more of them are the model's then."""
    known = model.state_dict().keys()
    best, removed, named, prefixes = weights, "", weights, ""
    while prefix := _common_prefix(named):
        rest = sorted(name for name in named if not name.startswith(prefix))
        shorter = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        prefixes += prefix
        if len(known & shorter.keys()) > len(known & best.keys()):
            if len(shorter) < len(named) or any(name not in known for name in rest):
                raise ValueError(
                    f"{source}: most names begin with {prefix!r}, but {some_of(rest, 2)} do not: save the state dict "
                    "of the model alone"
                )
            best, removed = shorter, prefixes
        named = shorter
    return best, [f"left out {removed!r} before its names"] if removed else []


def _without_bookkeeping(weights: Weights, model: nn.Module) -> tuple[Weights, list[str]]:
    """Leave out what training scripts keep beside a model: metrics, losses, the count of an average."""
    known = model.state_dict().keys()
    beside = [name for name in weights if _BOOKKEEPING.match(name) and name not in known]
    kept = {name: tensor for name, tensor in weights.items() if name not in beside}
    return kept, [f"left out {some_of(sorted(beside), 2)}, which are not the model's"] if beside else []


def _without_chunks(weights: Weights, model: nn.Module) -> tuple[Weights, list[str]]:
    """DINOv2's own form: blocks in chunks, blocks.CHUNK.BLOCK, and a token for masks that no classifier uses."""
    known, said = model.state_dict().keys(), []
    if any(_CHUNK.match(name) for name in weights) and "blocks.0.norm1.weight" in known:
        weights = {_CHUNK.sub("blocks.", name): tensor for name, tensor in weights.items()}
        said.append("its blocks are in chunks: took them in order")
    if "mask_token" in weights and "mask_token" not in known:
        weights = {name: tensor for name, tensor in weights.items() if name != "mask_token"}
        said.append("left out mask_token, which is for pretraining")
    return weights, said


def _common_prefix(weights: Weights) -> str | None:
    """What a wrapper put before more than half of the names."""
    return next((p for p in _PREFIXES if 2 * sum(name.startswith(p) for name in weights) > len(weights)), None)


def _arguments_in(
    weights: Weights, plain: nn.Module, args: dict[str, Any], source: Path
) -> tuple[dict[str, Any], list[str]]:
    """Arguments that the weights tell and that are not given, and what to say of them."""
    said = []
    known = plain.state_dict()
    classifier = _classifier(plain)
    if "num_classes" not in args and f"{classifier}.weight" in known:
        head = weights.get(f"{classifier}.weight")
        args["num_classes"] = 0 if head is None else len(head)
        if head is None:
            said.append(f"it has no classifier ({classifier}.weight)")
    if "global_pool" not in args and "fc_norm.weight" in weights and not weights.keys() & {"norm.weight"}:
        args["global_pool"] = "avg"
        said.append("fc_norm means average pooling: global_pool='avg'")
    positions = weights.get("pos_embed")
    if positions is not None and "pos_embed" in known and positions.shape[:2] != known["pos_embed"].shape[:2]:
        size = _image_size(int(positions.shape[1]), plain)
        places = f"pos_embed has {' × '.join(map(str, positions.shape[:2]))} places"
        if size is None:
            raise ValueError(f"{source}: {places}, which is no square image of this model: name img_size in model_args")
        if "img_size" in args:
            raise ValueError(
                f"{source}: {places}, which is img_size {size}, but model_args have img_size {args['img_size']}: give "
                f"{size}; patchmerger fit --init resamples them, with --image_size"
            )
        args["img_size"] = size
        said.append(f"{places}: img_size={size}")
    return args, said


def _classifier(model: Any) -> str:
    """Name of the last layer; of two, the first."""
    name = model.pretrained_cfg.get("classifier") or "head"
    return str(name if isinstance(name, str) else name[0])


def _image_size(places: int, model: Any) -> int | None:
    """The side in pixels of the square image that so many positions are for."""
    prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
    side = math.isqrt(max(0, places - prefix))
    patch = cast(tuple[int, int], getattr(getattr(model, "patch_embed", None), "patch_size", (0, 0)))
    return side * patch[0] if side and side * side == places - prefix and patch[0] == patch[1] else None


def _refuse_foreign(weights: Weights, plain: nn.Module, source: Path) -> None:
    """Refuse weights whose names tell that they are of something else."""
    known = plain.state_dict().keys()
    foreign = [name for name in weights if name not in known]
    for part, what in _FOREIGN.items():
        if any(part in name for name in foreign):
            raise ValueError(f"{source}: these are the weights of {what}")
    if "dist_token" in foreign:
        raise ValueError(
            f"{source}: these are the weights of a distilled model (dist_token): name that architecture, such as "
            "deit_small_distilled_patch16_224"
        )


def _why(weights: Weights, plain: nn.Module, mismatch: str) -> str:
    """In what size the weights differ, where that can be told; else the first names or shapes."""
    theirs, ours = _sizes(weights), _sizes(plain.state_dict())
    different = [f"{name} {theirs[name]} (the model {ours[name]})" for name in theirs.keys() & ours.keys()
                 if theirs[name] != ours[name]]  # fmt: skip
    if different:
        return f"its weights have {', '.join(sorted(different))}: say so in model_args, num_heads too"
    return mismatch


def _sizes(weights: Mapping[str, Any]) -> dict[str, int]:
    """What shapes and names tell of a Vision Transformer's size."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    patches = weights.get("patch_embed.proj.weight")
    sizes = {"depth": len(blocks)} if blocks else {}
    if patches is not None and patches.ndim == 4:
        sizes |= {"embed_dim": int(patches.shape[0]), "in_chans": int(patches.shape[1]),
                  "patch_size": int(patches.shape[2])}  # fmt: skip
    return sizes
