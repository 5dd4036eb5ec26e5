"""Models of timm: its hub format, with our key beside its own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_model_input_config
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.library import (
    Library,
    SaveOptions,
    names_in_order,
    preprocessing_in,
)
from patchmerger.hub.saved_changes import KEY
from patchmerger.hub.weights import write_weights
from patchmerger.mechanism.subclassing import host_class
from patchmerger.zoo import without_merger


def check_model_name(name: str) -> None:
    """Raise ``ValueError`` with close names where timm does not know ``name``."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return
    close = difflib.get_close_matches(architecture, timm.list_models(["vit_*", "deit*", "patchmerger_*"]), n=3)
    close = close or difflib.get_close_matches(architecture, timm.list_models(), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models('*vit*') lists them"
    raise ValueError(f"model.name ({name!r}) is no architecture that timm {timm.__version__} knows; {hint}")


class Timm(Library):
    """Models made by ``timm.create_model``, of any family."""

    name = "timm"
    advice = "say in model_args what was changed since timm made it, such as model_args={'depth': 6}"

    def made(self, model: nn.Module) -> bool:
        """A model that timm made, or one of a user that is registered with timm."""
        return host_class(model).__module__.startswith("timm.models.") or hasattr(model, "pretrained_cfg")

    def write(self, model: nn.Module, folder: Path, mergers: dict[str, Any] | None, options: SaveOptions) -> None:
        """As timm writes it; what the model was loaded with stays, where the options name nothing else."""
        architecture = _architecture(model)
        if not architecture or not timm.is_model(architecture):
            raise ValueError(
                f"model ({host_class(model).__name__}) has no architecture that timm knows ({architecture!r}): it "
                "could not be built again; make it with timm.create_model"
            )
        options.refuse("image_processor", "is for models of transformers; give preprocessing")
        options.check_channels(get_model_input_config(model)["input_size"][0])
        names = options.names_of(int(cast(Any, model).num_classes)) or self.class_names_of(model)
        settings = {"label_names": None if names is None else list(names)}
        save_config_for_hf(
            model,
            str(folder / CONFIG_NAME),
            model_config=settings | ({} if mergers is None else {KEY: mergers}),
            model_args=(without_merger(architecture) if mergers is None else {}) | dict(options.model_args),
            data_config=None if options.preprocessing is None else asdict(options.preprocessing),
        )
        write_weights(model, folder)

    def make(self, folder: Path, config: dict[str, Any]) -> nn.Module:
        """By timm, which reads the folder's config itself."""
        architecture = config["architecture"]
        if not timm.is_model(architecture):
            raise ValueError(
                f"{folder / CONFIG_NAME} names the architecture {architecture!r}, which timm {timm.__version__} does "
                "not know: upgrade timm, or import the module that registers it"
            )
        try:
            # A model of the zoo is made without its own merger where our key says what merges.
            own = without_merger(architecture) if KEY in config else {}
            model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False, **own)
        except Exception as error:  # of the values in a config timm checks few
            raise ValueError(
                f"timm {timm.__version__} cannot make {architecture!r} with the model_args in "
                f"{folder / CONFIG_NAME}: {error}"
            ) from error
        return model

    def outputs(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Features, and what the head makes of them."""
        like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        shape = get_model_input_config(model)["input_size"]
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(like)
        # Both by name: __call__ would run user's hooks and compile a compiled model for this one image.
        for stage in ("forward_features", "forward"):
            yield stage, getattr(model, stage)(image)

    def preprocessing_of(self, model: nn.Module) -> Preprocessing | None:
        """As ``model.pretrained_cfg`` says, for the model's own size."""
        return preprocessing_in(resolve_model_data_config(model))

    def class_names_of(self, model: nn.Module) -> tuple[str, ...] | None:
        """Those that the model was loaded with, where its head is still the one for them."""
        known = names_in_order(cast(Any, model).pretrained_cfg.get("label_names"))
        return known if known and len(known) == getattr(model, "num_classes", 0) else None


def _architecture(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture") or "")
