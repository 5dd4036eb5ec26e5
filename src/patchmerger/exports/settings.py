"""What an export is asked for: format, number format, what is fixed, and how near the file must be; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from patchmerger.runs.checks import check_at_least, check_choices

Format: TypeAlias = Literal["onnx", "openvino", "torch", "aotinductor"]
"""The kind of file: ONNX, OpenVINO's IR, a ``torch.export`` program, or one compiled for this kind of machine."""

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
"""The number format of the weights."""

PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch": ("fp32", "fp16", "bf16"),
    "aotinductor": ("fp32", "fp16", "bf16"),
}
"""The number formats that each kind of file comes in."""

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": "", "torch": ".pt2", "aotinductor": ".pt2"}
"""What the name of the file ends with; an export for OpenVINO is a folder of two files."""

FILE_ENDINGS = (".onnx", ".pt2", ".xml")
"""What the name of an exported file ends with; the last is that of the one that describes an OpenVINO model."""

MAX_DIFFERENCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.4, "int8": 1.5}
"""The largest difference of a logit, in standard deviations of the eager model's logits."""

MIN_AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.99, "int8": 0.97}
"""The least share of images for which the file and the eager model name the same class."""

LEAST_CALIBRATION = 32
OPSETS = range(18, 25)


@dataclass(frozen=True)
class ExportSettings:
    """What is exported, and how.

    Args:
        format: "onnx", "openvino" (a folder with model.xml and model.bin), "torch" (a ``torch.export`` program) or
            "aotinductor" (such a program, compiled for machines like this one).
        precision: Number format of the weights: "fp32", "fp16", "bf16" (all but ONNX) or "int8" (ONNX and OpenVINO;
            calibrated on images).
        image_size: Height and width in pixels; the model's own by default.
        dynamic_size: Take images of any height and width that are multiples of the patch's side; position tables are
            resized in the file. Models and formats that cannot do so are refused.
        dynamic_batch: Take batches of any size; otherwise one image a call.
        with_preprocessing: Build in the normalisation and the softmax: uint8 (B, H, W, 3) in, probabilities out.
        opset: Version of ONNX's operators, from 18 to 24. From 23 on, attention is one operator.
        max_difference: The largest difference of a logit from the eager model's, in standard deviations of its
            logits; by default 0.001 for fp32, 0.05 for fp16, 0.4 for bf16, 1.5 for int8.
        min_agreement: On real images, the least share for which both name the same class; by default 0.999 for fp32,
            0.99 for fp16 and bf16, 0.97 for int8.
        parity_images: Images for which both are compared, at most.
        calibration_images: Images that int8 is calibrated on, at most.
        seed: Which images are drawn, and the noise where there are none.

    Raises:
        ValueError: A value that cannot be, or formats that do not go together.
    """

    format: Format = "onnx"
    precision: Precision = "fp32"
    image_size: int | None = None
    dynamic_size: bool = False
    dynamic_batch: bool = True
    with_preprocessing: bool = False
    opset: int = 23
    max_difference: float | None = None
    min_agreement: float | None = None
    parity_images: int = 128
    calibration_images: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.precision not in PRECISIONS[self.format]:
            kinds = [kind for kind, known in PRECISIONS.items() if self.precision in known]
            raise ValueError(
                f"precision ({self.precision!r}) is not for format {self.format!r}, which takes "
                f"{', '.join(PRECISIONS[self.format])}: {self.precision} is for {', '.join(kinds)}"
            )
        if self.dynamic_size and self.format == "openvino":
            raise ValueError(
                "dynamic_size (true) is not for format 'openvino', which resizes position embeddings differently: take "
                "'onnx' or 'torch', or export a file for each image_size"
            )
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size ({self.image_size}) must be at least one pixel")
        if self.opset not in OPSETS:
            raise ValueError(f"opset ({self.opset}) must be from {OPSETS[0]} to {OPSETS[-1]}")
        if self.max_difference is not None and not self.max_difference >= 0:
            raise ValueError(f"max_difference ({self.max_difference}) must be 0 or more: 0.001, say")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement ({self.min_agreement}) must be a share from 0 to 1")
        check_at_least(1, self, "parity_images")
        if self.calibration_images < LEAST_CALIBRATION:
            raise ValueError(
                f"calibration_images ({self.calibration_images}) must be at least {LEAST_CALIBRATION}: of fewer the "
                "range of activations is not known"
            )

    @property
    def tolerance(self) -> tuple[float, float]:
        """The largest difference and the least agreement that are accepted."""
        difference = MAX_DIFFERENCE[self.precision] if self.max_difference is None else self.max_difference
        return difference, MIN_AGREEMENT[self.precision] if self.min_agreement is None else self.min_agreement

    @property
    def is_folder(self) -> bool:
        """Whether the export is a folder of several files, and not one file."""
        return not SUFFIXES[self.format]

    def check_name(self, out: Path) -> None:
        """Refuse a file name that says another format."""
        suffix = SUFFIXES[self.format]
        if suffix and out.suffix != suffix:
            raise ValueError(f"out ({out}) must end with {suffix} for format {self.format!r}")
        if not suffix and out.suffix in (".xml", ".bin", ".onnx", ".pt2"):
            raise ValueError(
                f"out ({out}) must be a folder for format {self.format!r}, which is two files, model.xml and "
                f"model.bin: {out.with_suffix('')}-openvino, say"
            )
