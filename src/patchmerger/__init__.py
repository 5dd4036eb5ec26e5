"""Make Vision Transformers about twice as fast by learning to merge their tokens (arXiv 2202.12015)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchmerger.acceleration.accelerating import accelerate
    from patchmerger.acceleration.calibration import calibrate
    from patchmerger.acceleration.distillation import distill
    from patchmerger.costs import Cost, cost
    from patchmerger.diagnosis import diagnose
    from patchmerger.fewshot.probe import few_shot
    from patchmerger.hosts import Host, UnsupportedModelError, register_host
    from patchmerger.hub import load, push_to_hub, save
    from patchmerger.inserted import InsertedMerger, mergers
    from patchmerger.insertion import insert, remove
    from patchmerger.merger import PRESETS, PatchMerger, from_vit_pytorch, patch_merge, preset
    from patchmerger.planning import Plan, plan
    from patchmerger.speed.suite import bench
    from patchmerger.studies.compare import compare
    from patchmerger.studies.sweep import sweep
    from patchmerger.studies.transfer import transfer
    from patchmerger.training.evaluation import evaluate
    from patchmerger.training.fitting import fit

__version__ = version("patchmerger")

# Each public name and the module that it is in. They are imported on first use, so that
# `import patchmerger` alone costs next to nothing.
_PUBLIC = {
    "PRESETS": "merger",
    "Cost": "costs",
    "Host": "hosts",
    "InsertedMerger": "inserted",
    "PatchMerger": "merger",
    "Plan": "planning",
    "UnsupportedModelError": "hosts",
    "accelerate": "acceleration.accelerating",
    "bench": "speed.suite",
    "calibrate": "acceleration.calibration",
    "compare": "studies.compare",
    "cost": "costs",
    "distill": "acceleration.distillation",
    "diagnose": "diagnosis",
    "evaluate": "training.evaluation",
    "few_shot": "fewshot.probe",
    "fit": "training.fitting",
    "from_vit_pytorch": "merger",
    "insert": "insertion",
    "load": "hub",
    "mergers": "inserted",
    "patch_merge": "merger",
    "plan": "planning",
    "preset": "merger",
    "push_to_hub": "hub",
    "register_host": "hosts",
    "remove": "insertion",
    "save": "hub",
    "sweep": "studies.sweep",
    "transfer": "studies.transfer",
}

__all__ = [
    "PRESETS",
    "Cost",
    "Host",
    "InsertedMerger",
    "PatchMerger",
    "Plan",
    "UnsupportedModelError",
    "accelerate",
    "bench",
    "calibrate",
    "compare",
    "cost",
    "diagnose",
    "distill",
    "evaluate",
    "few_shot",
    "fit",
    "from_vit_pytorch",
    "insert",
    "load",
    "mergers",
    "patch_merge",
    "plan",
    "preset",
    "push_to_hub",
    "register_host",
    "remove",
    "save",
    "sweep",
    "transfer",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"patchmerger.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'patchmerger' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
