"""What a saved model is, read from its folder without building it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from patchmerger.hub.downloading import find_folder
from patchmerger.hub.folders import CONFIG_NAME, read_json
from patchmerger.hub.libraries import library_of_config
from patchmerger.hub.saved_mergers import SavedMerger, read_mergers


@dataclass(frozen=True)
class SavedConfig:
    """What a saved model is and how its images are prepared.

    What is said of images is ``None`` where the folder does not say it (of transformers: without an image processor).

    Attributes:
        library: ``"timm"``, ``"transformers"`` or ``"torchvision"``.
        architecture: timm's name of the model, or the name of its class.
        num_classes: Outputs of the head; 0 where there is none.
        input_size: (channels, height, width) of an image.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        crop_pct: Part of the resized image that the centre crop keeps.
        crop_mode: How the crop is taken, in timm's words.
        interpolation: How images are resized, in timm's words.
        class_names: One name a class, or ``None``.
        mergers: First to last.
    """

    library: str
    architecture: str
    num_classes: int
    input_size: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_pct: float | None
    crop_mode: str | None
    interpolation: str | None
    class_names: tuple[str, ...] | None
    mergers: tuple[SavedMerger, ...]


def describe(folder: str | os.PathLike[str], *, revision: str | None = None) -> SavedConfig:
    """Read what a saved model is, without building it.

    Args:
        folder: A folder that :func:`patchmerger.save` wrote, a plain model's of timm or transformers, or a name on
            the Hugging Face hub.
        revision: Branch, tag or commit of a name on the hub.

    Raises:
        FileNotFoundError: The folder or its ``config.json`` is missing.
        ValueError: The config is broken or written by a newer version.
    """
    path = find_folder(folder, revision, weights=False)
    config = read_json(path / CONFIG_NAME)
    library = library_of_config(config, path)
    try:
        plain = library.describe(config, path)
    except KeyError as error:
        raise ValueError(f"{path / CONFIG_NAME} does not say {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path / CONFIG_NAME} says something in a form that is not understood: {error}") from error
    images = plain.preprocessing
    return SavedConfig(
        library=library.name,
        architecture=plain.architecture,
        num_classes=plain.num_classes,
        input_size=plain.input_size,
        mean=images.mean,
        std=images.std,
        crop_pct=images.crop_pct,
        crop_mode=images.crop_mode,
        interpolation=images.interpolation,
        class_names=plain.class_names,
        mergers=read_mergers(config, path),
    )
