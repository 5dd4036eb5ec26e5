"""Make Vision Transformers about twice as fast by learning to merge their tokens (arXiv 2202.12015)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchmerger.costs import Cost, cost
    from patchmerger.evaluation import evaluate
    from patchmerger.fitting import fit
    from patchmerger.hosts import UnsupportedModelError
    from patchmerger.hub import load, save
    from patchmerger.insertion import InsertedMerger, insert, mergers, remove
    from patchmerger.merger import PRESETS, PatchMerger, from_vit_pytorch, patch_merge, preset
    from patchmerger.studies.compare import compare

__version__ = version("patchmerger")

# Each public name and the module that it is in. They are imported on first use, so that
# `import patchmerger` alone costs next to nothing.
_PUBLIC = {
    "PRESETS": "merger",
    "Cost": "costs",
    "InsertedMerger": "insertion",
    "PatchMerger": "merger",
    "UnsupportedModelError": "hosts",
    "compare": "studies.compare",
    "cost": "costs",
    "evaluate": "evaluation",
    "fit": "fitting",
    "from_vit_pytorch": "merger",
    "insert": "insertion",
    "load": "hub",
    "mergers": "insertion",
    "patch_merge": "merger",
    "preset": "merger",
    "remove": "insertion",
    "save": "hub",
}

__all__ = [
    "PRESETS",
    "Cost",
    "InsertedMerger",
    "PatchMerger",
    "UnsupportedModelError",
    "compare",
    "cost",
    "evaluate",
    "fit",
    "from_vit_pytorch",
    "insert",
    "load",
    "mergers",
    "patch_merge",
    "preset",
    "remove",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"patchmerger.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'patchmerger' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
