"""The optimiser: weight decay and learning rate of each parameter, and how the rates rise and fall."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.distributed.tensor import DTensor

from patchmerger.mechanism.blocks import is_merging
from patchmerger.merger import PatchMerger
from patchmerger.placing.placement import Placement
from patchmerger.training.settings import TrainingSettings


def make_optimizer(
    model: nn.Module, settings: TrainingSettings, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, Any]:
    """The optimiser and the schedule of timm: a linear warm-up, then a cosine, updated at every step."""
    optimizer = timm_optimizer(parameter_groups(model, settings), settings)
    # Batches are accumulated over the ends of epochs, which are one run of batches to the trainer.
    updates = math.ceil(settings.epochs * steps_per_epoch / settings.accumulate)
    warmup = min(round(settings.warmup * steps_per_epoch / settings.accumulate), updates - 1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=updates - warmup,
        warmup_epochs=warmup,
        warmup_prefix=True,
        warmup_lr=settings.lr / 100,
        min_lr=settings.min_lr,
        step_on_epochs=False,
        updates_per_epoch=1,  # every number above counts updates
    )
    return optimizer, schedule


def timm_optimizer(groups: list[dict[str, Any]], settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser of timm; AdamW on a CPU steps all weights in one call, a fifth of the time for a small model."""
    on_cpu = all(p.device.type == "cpu" and not isinstance(p, DTensor) for group in groups for p in group["params"])
    fused = settings.optimizer == "adamw" and settings.precision != "16-mixed" and on_cpu
    options: dict[str, Any] = {"fused": True} if fused else {}
    found: torch.optim.Optimizer = create_optimizer_v2(groups, opt=settings.optimizer, lr=settings.lr, **options)
    return found


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Parameter groups of timm: weight decay on matrices only, rates by layer and for the mergers where asked for.

    Learned positions of placed tokens count as mergers' parameters: they are as new to a trained model.

    Returns:
        Groups as an optimiser takes them, of mergers' parameters alone (``"merger"`` is true) or of none of them, and
        of those alone that located queries have beside W (``"prior"``) or of none of them.
        ``"lr_scale"``, where there is one, is the factor on the learning rate that timm's schedules keep.
    """
    decayed, layer_decay = settings.weight_decay, settings.layer_decay
    without_decay = _without_decay(model, settings)
    if layer_decay is None:
        groups = param_groups_weight_decay(model, decayed, no_weight_decay_list=without_decay)
    else:
        groups = param_groups_layer_decay(model, decayed, no_weight_decay_list=without_decay, layer_decay=layer_decay)
    of_mergers = {id(p) for module in model.modules() if is_merging(module) for p in module.merger.parameters()}
    of_mergers |= {id(p) for module in model.modules() if isinstance(module, Placement) for p in module.parameters()}
    of_priors = {id(p) for module in model.modules() if isinstance(module, PatchMerger) for p in module.located}
    apart = []
    for group in groups:
        for merger, prior in ((False, False), (True, False), (True, True)):
            chosen = [p for p in group["params"] if (id(p) in of_mergers, id(p) in of_priors) == (merger, prior)]
            if chosen:
                apart.append({**group, "params": chosen, "merger": merger, "prior": prior})
    for group in apart:
        if group["merger"] and settings.merger_lr != 1:
            group["lr_scale"] = group.get("lr_scale", 1.0) * settings.merger_lr
    return apart


def _without_decay(model: nn.Module, settings: TrainingSettings) -> set[str]:
    """Names of matrices that are not decayed: what the model names, and what each merger names of its own."""
    names = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    for name, module in model.named_modules():
        if is_merging(module) and hasattr(module.merger, "no_weight_decay"):
            names |= {f"{name}.merger.{own}" for own in cast(Any, module.merger).no_weight_decay()}
            names -= {f"{name}.merger.weight"} if settings.decay_queries else set()
    return names
