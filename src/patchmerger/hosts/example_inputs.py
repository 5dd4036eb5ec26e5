"""The images that a model takes: their size, and an example of zeros or noise for counting, checking, measuring."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

from patchmerger.mechanism.subclassing import host_class

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True)
class Example:
    """Arguments for one call of a model.

    ``images`` (or spectrograms, or patches of images) go under the keyword ``name``; ``None`` for the first argument.
    ``others`` must be given with them, and ``text`` where a model compares images with texts.
    """

    images: Tensor
    name: str | None = None
    others: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """The model's output."""
        rest = self.others | self.text
        return model(self.images, **rest) if self.name is None else model(**{self.name: self.images}, **rest)

    def images_alone(self, model: ModelT) -> tuple[Example, ModelT | ImageFeatures]:
        """The same without the text, and what takes it: the model, or its way from images to their features."""
        return (replace(self, text={}), ImageFeatures(model)) if self.text else (self, model)


class ImageFeatures(nn.Module):
    """A model of transformers that compares images with texts, itself, as a function of the images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **images: Any) -> Any:
        """What the model makes of images, for the comparison."""
        return cast(Any, self.model).get_image_features(**images)


def example_input(
    model: nn.Module,
    image_size: int | tuple[int, int] | None = None,
    *,
    batch_size: int = 1,
    seed: int | None = None,
) -> Example:
    """Make an input for a model of timm, transformers or torchvision, or of one's own, on its device and in its dtype.

    A model of one's own is asked for its ``image_size`` or ``img_size`` where no other, in pixels, is given. Images are
    zeros, or with a ``seed`` noise (normal, standard deviation 1).

    Raises:
        ValueError: The size is neither given nor known, or the model takes no images of another size.
    """
    if _library(model) == "transformers":
        example = _for_transformers(model, image_size, batch_size)
    else:
        size = image_size_of(model) if image_size is None else _pair(image_size)
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
        example = Example(torch.zeros(batch_size, channels, *size))
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    images = example.images
    if seed is not None:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return replace(
        example,
        images=images.to(device=like.device, dtype=like.dtype),
        others=_on_device(example.others, like.device),
        text=_on_device(example.text, like.device),
    )


def _on_device(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Tensors where the model is. On the meta device nothing can be read: shapes stay, an empty mask goes."""
    if device.type == "meta" and "spatial_shapes" in values:
        return values | {"pixel_attention_mask": None}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def image_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that a model was built for (of a spectrogram: time and frequency).

    Raises:
        ValueError: The model does not say it.
    """
    library = _library(model)
    if library == "transformers":
        return _size_of_transformers(_vision_config(model))
    if library == "timm":
        own = getattr(getattr(model, "patch_embed", None), "img_size", None)
        return _pair(get_model_input_config(model)["input_size"][1:] if own is None else own)
    size = getattr(model, "image_size", None) or getattr(model, "img_size", None)
    if size is None:
        raise ValueError(f"image_size (None) must be given: {host_class(model).__name__} does not say its own")
    return _pair(size)


def size_in(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of images, in pixels."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and min(size) < 1:
        raise ValueError(f"image_size {size} must be at least one pixel high and wide")
    return size


def square_input(model: nn.Module) -> int:
    """The side of the square images that a model takes, in pixels.

    Raises:
        ValueError: They are not square, or the model does not say their size.
    """
    height, width = image_size_of(model)
    if height != width:
        raise ValueError(
            f"model ({host_class(model).__name__}) takes images of {height} × {width} pixels; square ones are needed"
        )
    return height


def check_patches(model: Any, size: tuple[int, int]) -> None:
    """Refuse images, (height, width) in pixels, of which timm would cut the edges off, or which it cannot divide."""
    embedding = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    patch: tuple[int, int] = tuple(getattr(embedding, "patch_size", (1, 1)))
    if any(pixels % side for pixels, side in zip(size, patch, strict=True)):
        fitting = tuple(max(1, round(pixels / side)) * side for pixels, side in zip(size, patch, strict=True))
        raise ValueError(f"image_size {size} does not divide by the patch size {patch}: take {fitting}, say")


def fit_to_size(model: ModelT, image_size: int | tuple[int, int] | None) -> ModelT:
    """Set the input size of a timm model, in place, where it is another one and fixed."""
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if image_size is None or own is None or getattr(model, "dynamic_img_size", False):
        return model
    if tuple(own) != _pair(image_size) and hasattr(model, "set_input_size"):
        model.set_input_size(_pair(image_size))  # type: ignore[operator]
    return model


def resized(model: ModelT, image_size: int | None) -> ModelT:
    """The model, or a copy of it that says that it is for square images of another size.

    Raises:
        ValueError: It takes no images of that size.
    """
    if image_size is None or image_size_of(model) == (image_size, image_size):
        return model
    check_patches(model, (image_size, image_size))
    clone = copy.deepcopy(model)
    if hasattr(clone, "set_input_size"):  # of timm; a model that takes any size by itself still has one of its own
        clone.set_input_size((image_size, image_size))  # type: ignore[operator]
    elif _library(model) == "timm" and not get_model_input_config(model)["fixed_input_size"]:
        own: Any = clone
        own.pretrained_cfg = {**own.pretrained_cfg, "input_size": (3, image_size, image_size)}
    if image_size_of(clone) != (image_size, image_size):
        height, width = image_size_of(model)
        raise ValueError(
            f"image_size ({image_size}) does not fit {host_class(model).__name__}, which takes images of {height} × "
            f"{width} pixels: leave it out"
        )
    return clone


def _library(model: nn.Module) -> str:
    return host_class(model).__module__.split(".")[0]


def _vision_config(model: Any) -> Any:
    return getattr(model.config, "vision_config", None) or model.config


def _size_of_transformers(config: Any) -> tuple[int, int]:
    if hasattr(config, "num_mel_bins"):
        return int(config.max_length), int(config.num_mel_bins)
    if "siglip2" in config.model_type:
        side = round(config.num_patches**0.5) * config.patch_size
        return side, side
    return _pair(config.image_size)


def _for_transformers(model: Any, image_size: int | tuple[int, int] | None, batch_size: int) -> Example:
    config = _vision_config(model)
    own = _size_of_transformers(config)
    size = own if image_size is None else _pair(image_size)
    if hasattr(config, "num_mel_bins"):  # a spectrogram: time × frequency
        if image_size is not None:
            raise ValueError(f"image_size ({image_size}) means nothing to {host_class(model).__name__}")
        return Example(torch.zeros(batch_size, *size), "input_values")
    if "siglip2" in config.model_type:
        rows, columns = (pixels // config.patch_size for pixels in size)
        patches = torch.zeros(batch_size, rows * columns, config.num_channels * config.patch_size**2)
        real = torch.ones(batch_size, rows * columns, dtype=torch.long)
        shapes = torch.tensor([[rows, columns]]).repeat(batch_size, 1)
        return Example(patches, "pixel_values", {"pixel_attention_mask": real, "spatial_shapes": shapes}, _text(model))
    frames = [config.num_frames] if hasattr(config, "num_frames") else []  # a video
    others = {} if size == own else {"interpolate_pos_encoding": True}
    images = torch.zeros(batch_size, *frames, getattr(config, "num_channels", 3), *size)
    return Example(images, "pixel_values", others, _text(model))


def _text(model: Any) -> dict[str, Any]:
    """A text of two tokens, for a model that compares images with texts; nothing for others."""
    config = getattr(model.config, "text_config", None)
    if config is None or "input_ids" not in inspect.signature(host_class(model).forward).parameters:
        return {}
    ends = [min(getattr(config, name, None) or 0, config.vocab_size - 1) for name in ("bos_token_id", "eos_token_id")]
    return {"input_ids": torch.tensor([ends])}


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
