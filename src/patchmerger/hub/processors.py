"""How images are prepared for a model of transformers: the ``preprocessor_config.json`` of its image processor."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from patchmerger.hub.folders import PROCESSOR_NAME, read_json
from patchmerger.hub.library import Preprocessing, SaveOptions

# In the order of Pillow's numbers for them.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_OPTIONS = ("mean", "std", "crop_pct", "interpolation")


def write_processor(config: Any, folder: Path, options: SaveOptions) -> None:
    """Write the user's image processor, or one made from mean, std, crop_pct and interpolation; else none.

    Args:
        config: That of the model.
        folder: Where to.
        options: The user's.

    Raises:
        ValueError: Options that contradict each other or say too little, or another thing than an image processor.
    """
    said = [name for name in _OPTIONS if getattr(options, name) is not None]
    processor = options.image_processor
    if processor is not None and said:
        raise ValueError(f"{said[0]} ({getattr(options, said[0])!r}) is given, and an image_processor too: give one")
    if processor is None and not said:
        return
    if processor is None:
        processor = _make_processor(config, options)
    library = import_module("transformers")
    if not isinstance(processor, library.ImageProcessingMixin | library.FeatureExtractionMixin):
        raise ValueError(
            f"image_processor ({type(processor).__name__}) must be an image processor of transformers; of a processor "
            "for images and texts give its .image_processor"
        )
    processor.save_pretrained(folder)


def describe_processor(folder: Path) -> Preprocessing:
    """What a folder says of its images; each part ``None`` that it does not say."""
    if not (folder / PROCESSOR_NAME).is_file():
        return Preprocessing()
    says = read_json(folder / PROCESSOR_NAME)
    size, crop, resample = says.get("size"), says.get("crop_size"), says.get("resample")
    resized = isinstance(size, dict)
    edge = size.get("shortest_edge") if isinstance(size, dict) else None
    kept = min(crop["height"], crop["width"]) if says.get("do_center_crop") and isinstance(crop, dict) else None
    return Preprocessing(
        mean=tuple(says["image_mean"]) if "image_mean" in says else None,
        std=tuple(says["image_std"]) if "image_std" in says else None,
        crop_pct=(kept / edge if kept and edge else 1.0) if resized else None,
        crop_mode=("center" if edge else "squash") if resized else None,
        interpolation=_RESAMPLE[resample] if isinstance(resample, int) else None,
    )


def _make_processor(config: Any, options: SaveOptions) -> Any:
    """Resize the shorter side, crop the centre, normalise: as timm evaluates."""
    size = getattr(config, "image_size", None)
    if not isinstance(size, int):
        raise ValueError(
            f"the model's images have no one size ({size!r}): give an image_processor in place of mean, std"
        )
    if options.mean is None or options.std is None:
        raise ValueError("mean and std must be given both, or an image_processor, for a model of transformers")
    return import_module("transformers").CLIPImageProcessor(
        size={"shortest_edge": round(size / (options.crop_pct or 0.875))},
        crop_size={"height": size, "width": size},
        image_mean=list(options.mean),
        image_std=list(options.std),
        resample=_RESAMPLE.index(options.interpolation or "bicubic"),
    )
