"""Models that another tool or library wraps: compiled, scripted, sharded, with adapters of PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel

from patchmerger.hosts.host import UnsupportedModelError
from patchmerger.hosts.state import partitioned_weight


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
