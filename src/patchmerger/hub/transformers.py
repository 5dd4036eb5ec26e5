"""Models of transformers: the folder that ``save_pretrained`` writes, with our key in its config.

transformers is optional and slow to import: it is imported only where a model or folder of it is at hand. It gives
weights other names on disk than in the model, and knows nothing of mergers, so ``from_pretrained`` reads the plain
model and the mergers' weights are put beside it, by the number of their block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from patchmerger.data.preprocessing import CropMode, Preprocessing
from patchmerger.hosts.example_inputs import example_input
from patchmerger.hosts.registry import supported_inside
from patchmerger.hub.folders import CONFIG_NAME, PROCESSOR_NAME
from patchmerger.hub.library import Library, PlainConfig, SaveOptions
from patchmerger.hub.saved_changes import KEY, SavedChanges, insert_mergers
from patchmerger.hub.weights import Weights
from patchmerger.insertion.inserted import mergers as mergers_in
from patchmerger.mechanism.subclassing import host_class
from patchmerger.runs.files import read_object, write_json

# A merger is a child of its block: vit.encoder.layer.5.merger.weight. Qwen's visual.merger.… is not meant.
_MERGER = re.compile(r"\.(?P<block>\d+)\.merger\.(?P<rest>.+)$")
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers for them
# Image processors that take one number for the shorter side; all others resize to a square.
_OF_SHORTER_SIDE = ("Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "Siglip", "VideoMAE")
_MEANINGLESS = (TypeError, ValueError, AttributeError, KeyError, RuntimeError, StrictDataclassError)


class Transformers(Library):
    """Models of the classes that transformers itself has."""

    name = "transformers"
    own_settings = frozenset({"name_or_path", "gradient_checkpointing", "_attn_implementation"})
    conversion = "load it with transformers' from_pretrained, then patchmerger.save(model, another_folder)"
    buffers_follow_weights = False
    advice = "change model.config along with the model, or save the state_dict of such a model yourself"

    def made(self, model: nn.Module) -> bool:
        """A model of a class in transformers; one of a user's subclass is not."""
        return host_class(model).__module__.startswith("transformers.")

    def write(self, model: nn.Module, folder: Path, mergers: dict[str, Any] | None, options: SaveOptions) -> None:
        """By ``save_pretrained``; our key, class names and preprocessing are put beside."""
        options.refuse("model_args", "is for models of timm; transformers keeps all of them in model.config")
        _refuse_unreadable(model)
        config = cast(Any, model).config
        before = {name: vars(config)[name] for name in ("architectures", "dtype") if name in vars(config)}
        try:
            cast(Any, model).save_pretrained(folder)
        finally:
            vars(config).update(before)  # save_pretrained changes them
        for weights in folder.glob("*.safetensors"):  # safetensors makes files that only their owner can read
            weights.chmod((folder / CONFIG_NAME).stat().st_mode)
        content = read_object(folder / CONFIG_NAME)
        content.pop(KEY, None)  # of a folder that transformers alone read once, without its mergers
        names = options.names_of(_num_classes(content))
        if names is not None:
            content["id2label"] = {str(number): name for number, name in enumerate(names)}
            content["label2id"] = {name: number for number, name in enumerate(names)}
        write_json(folder / CONFIG_NAME, content | ({} if mergers is None else {KEY: mergers}))
        _write_processor(config, folder, options)

    def make(self, folder: Path, config: dict[str, Any]) -> nn.Module:
        """By the class that the config names."""
        cls = _class(config, folder)
        try:
            model: nn.Module = cls(_own_config(cls, config))
        except _MEANINGLESS as error:
            raise _cannot_make(cls, folder, error) from error
        return model

    def build(
        self, folder: Path, config: dict[str, Any], changes: SavedChanges, weights: Weights
    ) -> tuple[nn.Module, Weights]:
        """By ``from_pretrained``, whose findings are kept as names and shapes that do not fit."""
        cls = _class(config, folder)
        own = {name: tensor for name, tensor in weights.items() if not (changes.mergers and _MERGER.search(name))}
        dtypes = {tensor.dtype for tensor in own.values() if tensor.is_floating_point()}
        try:
            model, found = cls.from_pretrained(
                None,
                config=_own_config(cls, config),
                state_dict=own,
                dtype=dtypes.pop() if len(dtypes) == 1 else "auto",
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except _MEANINGLESS as error:
            raise _cannot_make(cls, folder, error) from error
        named: Weights = {name: t for name, t in model.state_dict().items() if name not in found["missing_keys"]}
        named |= {name: torch.empty(0, device="meta") for name in found["unexpected_keys"]}
        named |= {name: torch.empty(shape, device="meta") for name, shape, _ in found["mismatched_keys"]}
        insert_mergers(model, changes.mergers)
        if changes.mergers:
            named |= _named_as_in(model, {name: tensor for name, tensor in weights.items() if name not in own})
        return model, named

    def outputs(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What each block gives, and all else that the model does."""
        try:
            example = example_input(model, seed=0)
            images = {example.name or "pixel_values": example.images}
            # By name: __call__ would run user's hooks and compile a compiled model for this one image.
            output = model.forward(
                **images, **example.others, **example.text, output_hidden_states=True, return_dict=True
            )
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            inside = getattr(error, "inside", ()) or supported_inside(model)
            raise ValueError(
                f"model ({host_class(model).__name__}) cannot be run on an image of its size, so what was saved could "
                f"not be checked: {error}" + (f"; it holds one that can: pass model.{inside[0]}" if inside else "")
            ) from error
        yield from _tensors(output, "forward")

    def run_alike(self, rebuilt: nn.Module, model: nn.Module) -> None:
        """The attention's implementation is a setting of a run; others round otherwise."""
        cast(Any, rebuilt).set_attn_implementation(cast(Any, model).config._attn_implementation)

    def describe(self, config: dict[str, Any], folder: Path) -> PlainConfig:
        """From the config, and from that of the image processor where there is one."""
        vision = config.get("vision_config") or config
        return PlainConfig(
            architecture=_architecture(config, folder),
            num_classes=_num_classes(config),
            input_size=_input_size(vision.get("image_size"), vision.get("num_channels", 3)),
            preprocessing=_read_processor(folder),
            class_names=_class_names(config),
        )

    def class_names_of(self, model: nn.Module) -> tuple[str, ...] | None:
        return _class_names(cast(Any, model).config.to_dict() | {"architectures": [host_class(model).__name__]})


def _tensors(output: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of an output, by name. torch's pytrees cannot name them in an output of older transformers."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping | list | tuple):
        parts = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, part in parts:
            yield from _tensors(part, f"{name}[{key!r}]")


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "this model is one of transformers, which is not installed: pip install 'patchmerger[hf]'"
        ) from error


def _architecture(config: dict[str, Any], folder: Path) -> str:
    named = config.get("architectures")
    if not (isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)):
        raise ValueError(
            f"{folder / CONFIG_NAME} does not name its class under 'architectures' ({named!r}): load it with the class "
            "of transformers that you want, and save it with patchmerger.save"
        )
    return named[0]


def _class(config: dict[str, Any], folder: Path) -> Any:
    """The very class that the config names."""
    library = _transformers()
    name = _architecture(config, folder)
    cls = getattr(library, name, None)
    if not (isinstance(cls, type) and issubclass(cls, library.PreTrainedModel)):
        raise ValueError(
            f"{folder / CONFIG_NAME} names the architecture {name!r}, which transformers {library.__version__} does "
            f"not have (written with {config.get('transformers_version', 'an unknown one')}): upgrade transformers; "
            "code that comes with a model is never run"
        )
    return cls


def _own_config(cls: Any, config: dict[str, Any]) -> Any:
    return cls.config_class.from_dict({key: value for key, value in config.items() if key != KEY})


def _cannot_make(cls: Any, folder: Path, error: Exception) -> ValueError:
    return ValueError(
        f"transformers {_transformers().__version__} cannot make a {cls.__name__} from {folder / CONFIG_NAME}: {error}"
    )


def _refuse_unreadable(model: nn.Module) -> None:
    """Refuse what ``save_pretrained`` writes in another form than the one that is read back."""
    name = host_class(model).__name__
    if getattr(_transformers(), name, None) is not host_class(model):
        raise ValueError(f"model ({name}) is a part of a model, which no config names: save the whole model")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"model ({name}) has adapters (PEFT), whose weights alone would be saved: merge them first")
    if getattr(cast(Any, model).config, "quantization_config", None) is not None:
        raise ValueError(f"model ({name}) is quantised, and cannot be saved so: save it before it is quantised")


def _named_as_in(model: nn.Module, weights: Weights) -> Weights:
    """Mergers' weights under the names that they have in ``model``; those of other blocks keep their names."""
    names = {merger.after - 1: merger.name for merger in mergers_in(model)}
    named = {}
    for name, tensor in weights.items():
        match = cast(re.Match[str], _MERGER.search(name))
        here = names.get(int(match["block"]))
        named[name if here is None else f"{here}.{match['rest']}"] = tensor
    return named


def _write_processor(config: Any, folder: Path, options: SaveOptions) -> None:
    """Write the user's image processor, or one made of the user's preprocessing; else none."""
    processor = options.image_processor
    if options.preprocessing is not None:
        processor = _make_processor(config, options.preprocessing)
    if processor is None:
        return
    library = _transformers()
    if not isinstance(processor, library.ImageProcessingMixin | library.FeatureExtractionMixin):
        raise ValueError(
            f"image_processor ({type(processor).__name__}) must be an image processor of transformers; of a processor "
            "for images and texts give its .image_processor"
        )
    processor.save_pretrained(folder)


def _make_processor(config: Any, preprocessing: Preprocessing) -> Any:
    """Resize, crop the centre, normalise: as timm evaluates."""
    size = getattr(config, "image_size", None)
    if preprocessing.crop_mode == "border":
        raise ValueError(
            "preprocessing has the crop_mode 'border', which no image processor of transformers has: give "
            "image_processor, or the crop_mode 'center' or 'squash'"
        )
    if not isinstance(size, int):
        raise ValueError(f"the model's images have no one size ({size!r}): give image_processor, not preprocessing")
    edge = preprocessing.resized_side(size)
    squash = preprocessing.crop_mode == "squash"
    return _transformers().CLIPImageProcessor(
        size={"height": edge, "width": edge} if squash else {"shortest_edge": edge},
        crop_size={"height": size, "width": size},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        resample=_RESAMPLE.index(preprocessing.interpolation),
    )


def _read_processor(folder: Path) -> Preprocessing | None:
    """What a folder says of its images; ``None`` where it does not say how they are normalised."""
    if not (folder / PROCESSOR_NAME).is_file():
        return None
    says = read_object(folder / PROCESSOR_NAME)
    mean, std = says.get("image_mean"), says.get("image_std")
    if not (isinstance(mean, list) and isinstance(std, list)):
        return None
    if says.get("do_normalize") is False:
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    if not (says.get("do_rescale", True) and math.isclose(says.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3)):
        return None  # mean and std are not for pixels from 0 to 1
    if isinstance(says.get("size"), dict) and not says["size"].keys() & {"shortest_edge", "height"}:
        return None  # resized by another rule
    edge, crop_mode = _resized(says)
    crop, resample = says.get("crop_size"), says.get("resample")
    kept = crop if isinstance(crop, int) else min(crop["height"], crop["width"]) if isinstance(crop, dict) else None
    return Preprocessing(
        tuple(mean),
        tuple(std),
        crop_pct=kept / edge if kept and edge and says.get("do_center_crop") else 1.0,
        interpolation=_RESAMPLE[resample] if isinstance(resample, int) else "bilinear",
        crop_mode=crop_mode,
    )


def _resized(says: dict[str, Any]) -> tuple[int | None, CropMode]:
    """What an image processor resizes a side to, and whether it is the shorter one or both.

    Older files say one number, which each class understands in its own way.
    """
    size = says.get("size")
    if isinstance(size, dict):
        if "height" in size and "width" in size:
            return min(size["height"], size["width"]), "squash"
        return size.get("shortest_edge"), "center"
    kind = str(says.get("image_processor_type") or says.get("feature_extractor_type"))
    return (size if isinstance(size, int) else None), "center" if kind.startswith(_OF_SHORTER_SIDE) else "squash"


def _class_names(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The names that a config gives the classes, where they are more than numbers."""
    names = config.get("id2label") if _num_classes(config) else None
    if not names or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    return tuple(names[number] for number in sorted(names, key=int))


def _num_classes(config: dict[str, Any]) -> int:
    """Outputs of the classifier; 0 where there is none."""
    if "Classification" not in str(config.get("architectures")):
        return 0
    labels = config.get("id2label")
    return len(labels) if labels else int(config.get("num_labels", 2))  # 2 is what transformers does not write down


def _input_size(size: Any, channels: int) -> tuple[int, int, int] | None:
    if isinstance(size, int):
        return channels, size, size
    return None if size is None else (channels, int(size[0]), int(size[1]))
