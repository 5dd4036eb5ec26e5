"""``patchmerger convert``: the weights of a checkpoint, as a folder that every other command takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchmerger.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Command:
    """Convert the weights of a timm model, saved by PyTorch (.pth, .pt, .pth.tar, .bin, .ckpt) or as safetensors.

    A pickle can run any code when it is read. Here it is read by torch.load(weights_only=True) alone, which makes
    tensors and plain values, and argparse.Namespace, which timm's train.py puts beside the weights.

    Args:
        checkpoint: The file.
        architecture: timm's name of the model, such as vit_small_patch16_224; by default the one that the file names.
        model_args: Further arguments of timm.create_model; classes and image size are read off the weights.
        key: Which weights, where the file holds several, such as model_ema.
        preprocessing: How images are prepared for the model; by default as timm says of the architecture.
        class_names: One name a class.
        out: The folder to make; the file's name without its ending if not given.
        overwrite: Replace a model that was saved in that folder.
    """

    checkpoint: Path
    architecture: str | None = None
    model_args: dict[str, Any] | None = None
    key: str | None = None
    preprocessing: Preprocessing | None = None
    class_names: list[str] | None = None
    out: Path | None = None
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Convert, and say where the folder is."""
        from patchmerger.hub.conversion import convert

        folder = convert(
            self.checkpoint, self.out, architecture=self.architecture, model_args=self.model_args, key=self.key,
            preprocessing=self.preprocessing, class_names=self.class_names, overwrite=self.overwrite,
        )  # fmt: skip
        print(folder)
        return 0
