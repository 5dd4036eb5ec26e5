"""The architectures that timm, transformers and torchvision name, each built from its defaults on the meta device."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from patchmerger.census.census import Library, matches
from patchmerger.runs.meta_device import meta_device

# What is mapped to no image encoder or classifier and yet is one: towers of larger models, videos, spectrograms.
_TOWERS = re.compile(
    r"(Vision(Model|Encoder|Transformer|TransformerPretrainedModel|ModelWithProjection)|ImageModel|ViTModel"
    r"|ForImageClassification|ForVideoClassification)$"
)
_OTHERS = ("ASTForAudioClassification", "ASTModel", "RadioModel", "Sapiens2Model")

# Not the defaults: ViTMAE leaves patches out at random, also when it is not trained.
_OPTIONS: dict[str, dict[str, Any]] = {"ViTMAEModel": {"mask_ratio": 0.0}}

# What does not run on the meta device: SigLIP 2 reads the size of each image off a tensor.
_ON_CPU = ("Siglip2",)


@dataclass(frozen=True)
class Architecture:
    """Something that a library can build: an architecture of timm or torchvision, or a class of transformers.

    ``build`` makes it, on the meta device where it can run there.
    """

    library: Library
    name: str
    build: Callable[[], nn.Module]


def installed(library: Library) -> bool:
    """Whether ``library`` can be imported."""
    return importlib.util.find_spec(library) is not None


def architectures(library: Library, filter: str = "*") -> list[Architecture]:
    """Everything that ``library`` names and that ``filter`` (``"vit_*"``, say) lets through, in its order."""
    listed = {"timm": _of_timm, "transformers": _of_transformers, "torchvision": _of_torchvision}[library]()
    return [
        Architecture(library, name, make if name.startswith(_ON_CPU) else partial(_on_meta, make))
        for name, make in listed
        if matches(name, filter)
    ]


def _on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    try:
        with meta_device():
            return make()
    except RuntimeError as error:
        if "meta tensor" not in str(error):  # which is no fault of the model
            raise
    return make()


def _of_timm() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    import timm

    for name in timm.list_models(exclude_filters="patchmerger_*"):  # the zoo is made of these
        yield name, partial(timm.create_model, name)


def _of_torchvision() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Image classifiers: those whose builders stand in ``torchvision.models`` itself."""
    from torchvision import models

    for name in models.list_models(module=models):
        yield name, partial(models.get_model, name)


def _of_transformers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The classes that model types are mapped to as image encoders or classifiers, and towers by their names."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = {name for name in dir(transformers) if _TOWERS.search(name) and not name.startswith("Auto")}
    mappings: tuple[dict[str, Any], ...] = (
        auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    for mapping in mappings:
        for mapped in mapping.values():
            names |= {mapped} if isinstance(mapped, str) else set(mapped)
    for name in sorted(names.union(_OTHERS), key=str.lower):
        yield name, partial(_make_transformer, name)


def _make_transformer(name: str) -> nn.Module:
    import transformers

    cls: Any = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**_OPTIONS.get(name, {})))
    return model
