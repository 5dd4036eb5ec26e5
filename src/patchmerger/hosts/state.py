"""Models that another tool wrapped or changed: compiled, sharded, adapted by PEFT, quantised, offloaded, empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from patchmerger.hosts.host import UnsupportedModelError
from patchmerger.mechanism.subclassing import host_class

# Modules in which torch and bitsandbytes keep quantised weights.
_QUANTISED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "bitsandbytes.nn")


def wrapped_by(model: nn.Module) -> tuple[str, str, list[str]] | None:
    """What another tool made of a model, what would do, and the names of the model inside; ``None`` if nothing."""
    if isinstance(model, OptimizedModule):
        return "it is compiled", "pass model._orig_mod", ["_orig_mod"]
    if isinstance(model, torch.jit.ScriptModule):
        return "it is scripted", "pass the model that was scripted", []
    if isinstance(model, torch.fx.GraphModule):
        return "it is a traced graph", "pass the model that was traced", []
    if isinstance(model, DataParallel | DistributedDataParallel):
        return "it is wrapped already", "pass the model inside (model.module)", ["module"]
    if type(model).__name__ in ("FeatureGetterNet", "FeatureListNet", "FeatureDictNet", "FeatureHookNet"):
        return "it only wraps the model for features", "pass its .model", ["model"]
    return None


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse a model that another tool wrapped: a merger put inside would be ignored or left out of sync."""
    if (found := wrapped_by(model)) is not None:
        reason, way_out, inside = found
        raise UnsupportedModelError(model, reason, f"{way_out}: insert comes first", "wrapped", inside)
    _refuse_sharded(model)


def _refuse_sharded(model: nn.Module) -> None:
    """Refuse a model with a sharded part: a merger put in now would be neither sharded nor synchronised."""
    if partitioned := partitioned_weight(model):
        raise UnsupportedModelError(
            model,
            f"DeepSpeed (ZeRO 3) has partitioned its weights already ({partitioned})",
            "insert before deepspeed.initialize and outside deepspeed.zero.Init",
            "wrapped",
        )
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    parts = any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())
    if parts or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UnsupportedModelError(model, "it is sharded already", "insert first, then call fully_shard", "wrapped")


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT wraps ``model``, or put adapters into it."""
    return any(type(module).__module__.startswith(("peft.tuners", "peft.peft_model")) for module in model.modules())


def refuse_adapters(model: nn.Module, inside: Sequence[str] = ()) -> None:
    """Refuse a model with adapters of PEFT, whose adapter files would not know of a merger that comes or goes now."""
    if has_adapters(model):
        raise UnsupportedModelError(
            model,
            "it has adapters of PEFT, whose files would not hold the merger",
            "call merge_and_unload() first, or make the adapter after insert, by "
            "get_peft_model(model, LoraConfig(…, modules_to_save=['merger']))",
            "wrapped",
            inside,
        )


def without_peft(model: nn.Module) -> nn.Module:
    """The model that a ``PeftModel`` or ``PeftMixedModel`` wraps, its adapters in it; any other model itself."""
    if type(model).__module__.startswith("peft.peft_model"):
        return cast(nn.Module, cast(Any, model).get_base_model())
    if type(model).__module__.startswith("peft.mixed_model"):
        return cast(nn.Module, cast(Any, model).base_model.model)
    return model


def left_by_peft(model: nn.Module) -> str | None:
    """The first module that ``merge_and_unload`` left in a wrapper (``modules_to_save``), as after some tuners."""
    return next((name for name, module in model.named_modules() if hasattr(module, "modules_to_save")), None)


def saved_with_adapter(module: nn.Module) -> nn.Module | None:
    """The module that runs where PEFT keeps a trained copy of it (``modules_to_save``); else ``None``."""
    wrapper = cast(Any, module)
    if not type(module).__module__.startswith("peft.") or not hasattr(wrapper, "modules_to_save"):
        return None
    active = wrapper.active_adapters[0] if wrapper.active_adapters else None
    return cast(nn.Module, wrapper.modules_to_save[active] if active else wrapper.original_module)


def refuse_unsupported_state(model: nn.Module, done: str, *, meta: bool = False) -> None:
    """Refuse a model with which nothing exact can be ``done`` ("saved", say) in the state that its weights are in.

    With ``meta`` one that is on the meta device as a whole, which holds no weights, is taken.
    """
    found = unsupported_state(model, meta=meta)
    if found is not None:
        reason, way_out = found
        raise ValueError(f"model ({host_class(model).__name__}) cannot be {done}: {reason}; {way_out}")


def unsupported_state(model: nn.Module, *, meta: bool = False) -> tuple[str, str] | None:
    """Why nothing exact can be done with the weights of ``model``, and what would do; ``None`` where they are dense."""
    if partitioned := partitioned_weight(model):
        return (
            f"DeepSpeed (ZeRO 3) has partitioned its weights ({partitioned})",
            "do that before deepspeed.initialize and outside deepspeed.zero.Init, or within "
            "deepspeed.zero.GatheredParameters",
        )
    lazy = [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        return f"its {lazy[0]} has no shape yet, being lazy", "run it on an image first"
    quantised = _quantised_part(model)
    if quantised is not None:
        return f"it is quantised or sparse ({quantised})", "do that before quantising it, with its dense weights"
    if any(_is_offloaded(module) for module in model.modules()):
        return (
            "accelerate offloads or dispatches its weights to several devices",
            "load it on one device, without device_map, and do that first",
        )
    on_meta = [parameter.is_meta for parameter in model.parameters()]
    if any(on_meta) and not (meta and all(on_meta)):
        part = "it is" if all(on_meta) else "some of its weights are"
        return f"{part} on the meta device, which holds no weights", "give them values first: load_state_dict, say"
    return None


def refuse_computed_weights(model: nn.Module) -> None:
    """Refuse weights that torch computes from others: parametrised, pruned or normed ones."""
    for name, module in model.named_modules():
        found = _computed(module)
        if found is not None:
            tensor, undo = found
            raise ValueError(
                f"model ({host_class(model).__name__}) has a {name}.{tensor} that is computed from others: first "
                f"torch.nn.utils.{undo}(model.get_submodule({name!r}), {tensor!r})"
            )


def _computed(module: nn.Module) -> tuple[str, str] | None:
    """The name of a weight that is computed, and what of ``torch.nn.utils`` makes it a plain one."""
    if parametrize.is_parametrized(module):
        return next(iter(cast(nn.ModuleDict, module.parametrizations))), "parametrize.remove_parametrizations"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return hook._tensor_name, "prune.remove"
        undo = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}.get(type(hook).__name__)
        if undo is not None:
            return cast(Any, hook).name, undo
    return None


def partitioned_weight(model: nn.Module) -> str | None:
    """The first parameter of which DeepSpeed left only a part here; ``None`` where all are whole."""
    for name, parameter in model.named_parameters():
        whole = getattr(parameter, "ds_shape", None)
        if whole is not None and tuple(parameter.shape) != tuple(whole):
            return f"{name} is {tuple(parameter.shape)} of {tuple(whole)}"
    return None


def _quantised_part(model: nn.Module) -> str | None:
    """What tells that ``model`` is quantised; ``None`` where nothing does."""
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        return "by transformers"
    for name, module in model.named_modules():
        if type(module).__module__.startswith(_QUANTISED_MODULES):
            return f"{name or 'it'} is a {module._get_name()}"
    for name, parameter in model.named_parameters():
        if _is_packed(parameter):
            layout = "" if parameter.layout == torch.strided else "sparse "
            return f"{name} is {layout}{type(parameter.data).__name__} of {str(parameter.dtype).removeprefix('torch.')}"
    return None


def _is_packed(parameter: Tensor) -> bool:
    """Whether a parameter holds something else than the numbers of a dense floating point tensor."""
    if type(parameter).__module__.startswith("torch.distributed"):  # sharded
        return False
    dense = (parameter.is_floating_point() and parameter.dtype.itemsize > 1) or parameter.is_complex()
    return not dense or parameter.layout != torch.strided or is_traceable_wrapper_subclass(parameter)


def _is_offloaded(module: nn.Module) -> bool:
    """Whether accelerate moves the inputs or weights of ``module`` between devices when it runs."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", [hook])
    return any(type(one).__name__ in ("AlignDevicesHook", "CpuOffload") for one in hooks)
