"""Inputs other than images of one size: the spectrograms of AST, and the patches of SigLIP 2 with their shape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.preprocessing import Preprocessing, known_preprocessing
from patchmerger.data.transforms import normalize
from patchmerger.maps.inputs import Inputs, ModelInputs, ShownImage


def inputs_for(model: nn.Module, preprocessing: Preprocessing | None, name: str) -> Inputs:
    """What prepares images, or spectrograms, for a model.

    Args:
        model: The model, on its device.
        preprocessing: How its images are prepared.
        name: What to call the model in errors.

    Raises:
        ValueError: It takes videos, or nobody knows how its images are prepared.
    """
    config: Any = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    if hasattr(config, "num_mel_bins"):
        return SpectrogramInputs(model, config)
    if hasattr(config, "num_frames"):
        raise ValueError(f"model ({name}) takes videos: give patchmerger.merge_maps the inputs that it takes")
    if "siglip2" in str(getattr(config, "model_type", "")) and hasattr(config, "num_patches"):
        return PatchInputs(model, config, known_preprocessing(preprocessing, name))
    return ModelInputs(model, known_preprocessing(preprocessing, name))


class SpectrogramInputs:
    """Spectrograms for AST, from ``.npy`` files: float (time, frequency), normalised as the model takes them.

    A view has a row for each frequency, the lowest first, and a column for each time, as the grid of patches has.

    Args:
        model: The model.
        config: Its configuration.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        self.size = (int(config.num_mel_bins), int(config.max_length))
        self._like = next(p for p in model.parameters() if p.is_floating_point())

    def read(self, path: Path, name: str) -> ShownImage:
        """One file.

        Raises:
            BadImageError: It is no such file, or one of another shape.
        """
        if path.suffix != ".npy" or not path.is_file():
            raise BadImageError("the model takes spectrograms: a .npy file of floats (time, frequency)")
        try:
            values = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise BadImageError(f"not a .npy file of numbers: {error}") from error
        if tuple(values.shape) != self.size[::-1]:
            raise BadImageError(f"its shape is {tuple(values.shape)}, and the model takes {self.size[::-1]}")
        low, high = values.min(), values.max()
        grey = (255 * (values - low) / (high - low).clamp(min=1e-6)).to(torch.uint8)
        inputs = values[None].to(self._like.device, self._like.dtype)
        return ShownImage(name, grey.T[None].repeat(3, 1, 1).contiguous(), {"input_values": inputs})


class PatchInputs:
    """Images for SigLIP 2: each in its own shape, of about as many patches as the model was made for.

    Args:
        model: The model.
        config: Its configuration.
        preprocessing: How images are normalised.
    """

    def __init__(self, model: nn.Module, config: Any, preprocessing: Preprocessing) -> None:
        self._patch, self._patches = int(config.patch_size), int(config.num_patches)
        self._preprocessing = preprocessing
        self._like = next(p for p in model.parameters() if p.is_floating_point())
        side = math.isqrt(self._patches) * self._patch
        self.size = (side, side)

    def read(self, path: Path, name: str) -> ShownImage:
        """One image file.

        Raises:
            BadImageError: It cannot be read.
        """
        image = decode(path)
        scale = math.sqrt(self._patches / (image.shape[1] * image.shape[2]))
        rows, columns = (max(1, int(scale * pixels)) for pixels in image.shape[1:])
        view = functional.resize(image, [rows * self._patch, columns * self._patch], antialias=True)
        pixels = normalize(view[None].to(self._like.device), self._preprocessing).to(self._like.dtype)[0]
        return ShownImage(name, view, self._inputs(pixels, rows, columns))

    def _inputs(self, pixels: Tensor, rows: int, columns: int) -> dict[str, Tensor]:
        patch = self._patch
        cells = pixels.reshape(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)  # (rows, columns, p, p, 3)
        return {
            "pixel_values": cells.reshape(1, rows * columns, 3 * patch**2),
            "pixel_attention_mask": torch.ones(1, rows * columns, dtype=torch.long, device=pixels.device),
            "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device),
        }
