"""Models of torchvision, which records no arguments: they are read off the model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.hub.folders import CONFIG_NAME
from patchmerger.hub.library import Library, SaveOptions
from patchmerger.hub.saved_changes import KEY
from patchmerger.hub.weights import write_weights
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import write_json
from patchmerger.runs.serialisation import to_json

_ARCHITECTURE = "VisionTransformer"
# What torchvision's ViT_B_16_Weights.IMAGENET1K_V1 and most others of its weights were trained with.
_DEFAULTS = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224 / 256, "bilinear")


class Torchvision(Library):
    """torchvision's ``VisionTransformer``: ``vit_b_16`` … ``vit_h_14`` and others of that class."""

    name = "torchvision"
    # A model whose classifier was replaced in model.heads.head still says how many classes the old one had.
    own_settings = frozenset({"num_classes"})
    advice = (
        "only what VisionTransformer's own arguments make can be saved (a new classifier belongs in model.heads.head); "
        "save the state_dict of another model yourself"
    )

    def made(self, model: nn.Module) -> bool:
        """Any model of torchvision; those that cannot be saved are refused by :meth:`write`."""
        return host_class(model).__module__.startswith("torchvision.")

    def write(self, model: nn.Module, folder: Path, mergers: dict[str, Any] | None, options: SaveOptions) -> None:
        """In the form of timm's config, with the library named."""
        options.refuse("model_args", "is for models of timm; torchvision's are read off the model")
        options.refuse("image_processor", "is for models of transformers; give preprocessing")
        options.check_channels(3)
        arguments = arguments_of(model)
        config = {
            "library": self.name,
            "architecture": _ARCHITECTURE,
            "num_classes": arguments["num_classes"],
            "label_names": options.names_of(arguments["num_classes"]),
            "model_args": arguments,
            "pretrained_cfg": {
                "input_size": [3, arguments["image_size"], arguments["image_size"]],
                **to_json(options.preprocessing or _DEFAULTS),
            },
        }
        write_json(folder / CONFIG_NAME, config | ({} if mergers is None else {KEY: mergers}))
        write_weights(model, folder)

    def make(self, folder: Path, config: dict[str, Any]) -> nn.Module:
        if config.get("architecture") != _ARCHITECTURE:
            raise ValueError(
                f"{folder / CONFIG_NAME} names the architecture {config.get('architecture')!r}; of torchvision only "
                f"{_ARCHITECTURE!r} is known: upgrade patchmerger"
            )
        try:
            arguments = dict(config["model_args"])
            eps, stem = arguments.pop("norm_eps"), arguments.pop("conv_stem")
            model: nn.Module = VisionTransformer(
                **arguments,
                norm_layer=partial(nn.LayerNorm, eps=eps),
                conv_stem_configs=None if stem is None else [ConvStemConfig(*layer) for layer in stem],
            )
        except (KeyError, TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ValueError(
                f"torchvision {torchvision.__version__} cannot make a {_ARCHITECTURE} with the model_args in "
                f"{folder / CONFIG_NAME}: {error}"
            ) from error
        return model

    def outputs(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What the encoder gives, and what the heads make of it: a fresh classifier is all zeros."""
        vit = cast(VisionTransformer, model)
        like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
        shape = (1, 3, vit.image_size, vit.image_size)
        image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)
        seen: list[Tensor] = []
        handle = vit.encoder.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            output = vit.forward(image)
        finally:
            handle.remove()
        yield "encoder", seen[0]
        yield "forward", output

    def preprocessing_of(self, model: nn.Module) -> Preprocessing | None:
        """That of most of torchvision's weights: the model does not say."""
        return _DEFAULTS


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """The arguments that make such a model; drop rates apart, which are settings of a training run."""
    if host_class(model) is not VisionTransformer:
        raise ValueError(
            f"model ({host_class(model).__name__}) is of torchvision, of which only VisionTransformer can be saved"
        )
    vit = cast(VisionTransformer, model)
    head = getattr(vit.heads, "head", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"model.heads.head is a {type(head).__name__}, not the classifier that torchvision makes: put another "
            "number of classes in model.heads.head = torch.nn.Linear(…), or save the state_dict yourself"
        )
    first = next(iter(vit.encoder.layers.children()))
    return {
        "image_size": vit.image_size,
        "patch_size": vit.patch_size,
        "num_layers": len(vit.encoder.layers),
        "num_heads": cast(Any, first).num_heads,
        "hidden_dim": vit.hidden_dim,
        "mlp_dim": vit.mlp_dim,
        "num_classes": head.out_features,
        "representation_size": vit.representation_size,
        "norm_eps": getattr(vit.encoder.ln, "eps", None),
        "conv_stem": _conv_stem(vit.conv_proj),
    }


def _conv_stem(stem: nn.Module) -> list[tuple[int, int, int]] | None:
    """(channels, kernel, stride) of each layer of a convolutional stem, the last one apart; ``None`` for patches."""
    if not isinstance(stem, nn.Sequential):
        return None
    convs = [module for module in stem.modules() if isinstance(module, nn.Conv2d)]
    return [(conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convs[:-1]]
