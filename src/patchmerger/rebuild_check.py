"""That a model which was built again from its saved config is the model: its weights, settings and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from timm.models import get_model_input_config
from torch import Tensor, nn

_DROPS = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
_PLAIN = (bool, int, float, str, tuple)
# Settings of a run or of a start, which do not change what the trained model computes.
_RUN_TIME = {"training", "grad_checkpointing", "distilled_training", "fused_attn", "init_values", "weight_init_mode"}


def misfit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """In what ``weights`` are not the model's: names or shapes; ``None`` where they fit."""
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
            return f"{what}: {', '.join(found[:3])}" + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return None


def check_rebuilt(model: nn.Module, rebuilt: nn.Module) -> None:
    """Refuse a model whose weights, settings or outputs are not those of what was built from its config.

    Heads, activations and the like leave no trace in the weights, and a fresh network can hide them from its outputs
    too (a head of zeros, a small LayerScale), so the settings of all parts are compared as well.
    """
    weights = model.state_dict()
    difference = misfit(rebuilt, weights) or _other_setting(model, rebuilt)
    if difference is None:
        rebuilt.load_state_dict(weights, assign=True)  # the very tensors of the model: no memory, no rounding
        difference = _other_output(model, rebuilt)
    if difference:
        raise ValueError(
            "model cannot be built again from the arguments that timm recorded when it was made: built again it has "
            f"{difference}; say in model_args what was changed since, such as model_args={{'depth': 6}}"
        )


def _other_setting(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first part of another class or with another setting than in ``model``, drop rates apart."""
    parts = dict(model.named_modules())
    for name, part in rebuilt.named_modules():
        original = parts.get(name)
        if original is None or (isinstance(part, _DROPS) and isinstance(original, _DROPS)):
            continue
        if type(part) is not type(original):
            return f"a {type(part).__name__} as {name or 'model'}, not a {type(original).__name__}"
        for key, value in vars(part).items():
            if key.startswith("_") or "drop" in key or key in _RUN_TIME or key not in vars(original):
                continue
            expected = vars(original)[key]
            if isinstance(value, _PLAIN) and isinstance(expected, _PLAIN) and value != expected:
                return f"{name}.{key} = {value!r}, not {expected!r}".removeprefix(".")
    return None


@torch.no_grad()
def _other_output(model: nn.Module, rebuilt: nn.Module) -> str | None:
    """How the outputs for a random image differ, if they do."""
    like = next(tensor for tensor in model.parameters() if tensor.is_floating_point())
    image = torch.randn(1, *get_model_input_config(model)["input_size"], generator=torch.Generator().manual_seed(0))
    image = image.to(like)
    rebuilt.to(like.device).eval()
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for stage in ("forward_features", "forward"):
            # Both by name: __call__ would run user's hooks and compile a compiled model for this one image.
            expected, given = (getattr(m, stage)(image) for m in (model, rebuilt))
            if not (isinstance(expected, Tensor) and expected.shape == given.shape):
                return f"another kind of {stage} output"
            if not bool(expected.isfinite().all()):
                raise ValueError(f"{stage} of model gives values that are not finite: such a model is not saved")
            error = (expected - given).abs().max()
            if not error <= 10 * torch.finfo(expected.dtype).eps * expected.abs().max():
                return f"other outputs ({stage} differs by {error:.2g})"
    finally:
        for module, training in modes:
            module.training = training
    return None
