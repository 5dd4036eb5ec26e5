"""Inputs other than images of one size: the spectrograms of AST, and the patches of SigLIP 2 with their shape."""

from __future__ import annotations

import math
import wave
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from patchmerger.data.decoding import BadImageError, decode
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.transforms import normalize
from patchmerger.hosts.example_inputs import example_input
from patchmerger.maps.inputs import Inputs, ModelInputs, ShownImage
from patchmerger.models.classifier import check_channels
from patchmerger.models.finding import known_preprocessing

Array: TypeAlias = npt.NDArray[np.float32]
_WINDOW = 400
"""Samples that one column of a spectrogram is made of, 25 ms."""


def inputs_for(model: nn.Module, preprocessing: Preprocessing | None, name: str) -> Inputs:
    """What prepares images, or spectrograms, for a model on its device; errors call it ``name``.

    Raises:
        ValueError: It takes videos, or images that are not RGB, or nobody knows how its images are prepared.
    """
    config: Any = getattr(model, "config", None)
    config = getattr(config, "vision_config", None) or config
    if hasattr(config, "num_mel_bins"):
        return SpectrogramInputs(model, config, name)
    if hasattr(config, "num_frames"):
        raise ValueError(f"model ({name}) takes videos: give patchmerger.merge_maps the inputs that it takes")
    if "siglip2" in str(getattr(config, "model_type", "")) and hasattr(config, "num_patches"):
        return PatchInputs(model, config, known_preprocessing(preprocessing, name))
    check_channels(example_input(model).images.shape[1], name)
    return ModelInputs(model, known_preprocessing(preprocessing, name))


class SpectrogramInputs:
    """Spectrograms for AST, from files of arrays and of sound.

    A ``.npy`` file, or a ``.npz`` file of one array, holds a spectrogram: floats (time, frequency), normalised as the
    model takes them. A ``.wav`` file holds sound (PCM of 16 bits, mixed to one channel), of which transformers'
    ``ASTFeatureExtractor`` makes one: that of the model's folder, or one that normalises as for AudioSet. A view has a
    row for each frequency, the lowest first, and a column for each time, as the grid of patches has.
    """

    def __init__(self, model: nn.Module, config: Any, name: str = "") -> None:
        self.size = (int(config.num_mel_bins), int(config.max_length))
        self._like = next(p for p in model.parameters() if p.is_floating_point())
        self._folder = Path(name)

    def read(self, path: Path, name: str) -> ShownImage:
        """One file.

        Raises:
            BadImageError: It is no such file, or one of another shape, or of another sampling rate.
        """
        readers = {".npy": _array, ".npz": _array, ".wav": self._sound}
        if not path.is_file() or path.suffix.lower() not in readers:
            what = "does not exist" if not path.is_file() else "is no sound or spectrogram"
            raise BadImageError(
                f"{what}: the model takes a .npy or .npz file of floats (time, frequency), or a .wav file of sound"
            )
        values = torch.from_numpy(readers[path.suffix.lower()](path)).float()
        if tuple(values.shape) != self.size[::-1]:
            raise BadImageError(f"its shape is {tuple(values.shape)}, and the model takes {self.size[::-1]}")
        low, high = values.min(), values.max()
        grey = (255 * (values - low) / (high - low).clamp(min=1e-6)).to(torch.uint8)
        inputs = values[None].to(self._like.device, self._like.dtype)
        return ShownImage(name, grey.T[None].repeat(3, 1, 1).contiguous(), {"input_values": inputs})

    def _sound(self, path: Path) -> Array:
        """The spectrogram of a sound, (time, frequency); what is longer than the model takes is cut off."""
        samples, rate = _samples(path)
        extractor = self._extractor()
        if rate != extractor.sampling_rate:
            raise BadImageError(
                f"its sampling rate is {rate:,} Hz, and the model takes {extractor.sampling_rate:,} Hz: convert it, "
                f"with ffmpeg -i {path.name} -ar {extractor.sampling_rate} converted.wav, say"
            )
        values: Array = np.asarray(extractor(samples, sampling_rate=rate, return_tensors="np")["input_values"][0])
        return values

    def _extractor(self) -> Any:
        import transformers

        extractor: Any = transformers.ASTFeatureExtractor
        if (self._folder / "preprocessor_config.json").is_file():
            return extractor.from_pretrained(self._folder)
        return extractor(num_mel_bins=self.size[0], max_length=self.size[1])


def _array(path: Path) -> Array:
    """The array of a ``.npy`` file, or the only one of a ``.npz`` file."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = [found[name] for name in found.files] if path.suffix.lower() == ".npz" else [found]
        if len(arrays) != 1:
            raise BadImageError(f"it holds {len(arrays)} arrays, and one is taken: {', '.join(found.files)}")
        values: Array = arrays[0].astype(np.float32)
        return values
    except (ValueError, TypeError, AttributeError, OSError, EOFError, BadZipFile) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError(f"not a {path.suffix} file of numbers: {error}") from error


def _samples(path: Path) -> tuple[Array, int]:
    """The samples of a ``.wav`` file from -1 to 1, its channels mixed, and how many there are in a second."""
    try:
        with wave.open(str(path)) as sound:
            width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            data = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise BadImageError(f"not a .wav file of PCM: {error}") from error
    if width != 2:
        raise BadImageError(
            f"it has {8 * width} bits a sample, and 16 are taken: convert it, with ffmpeg -i {path.name} -c:a "
            "pcm_s16le converted.wav, say"
        )
    if len(data) < 2 * channels * _WINDOW:
        raise BadImageError(f"it has {len(data) // (2 * channels)} samples, fewer than one window ({_WINDOW})")
    samples = np.frombuffer(data, dtype="<i2").reshape(-1, channels).mean(axis=1) / 2**15
    return samples.astype(np.float32), rate


class PatchInputs:
    """Images for SigLIP 2: each in its own shape, of about as many patches as the model was made for."""

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
