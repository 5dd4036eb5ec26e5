"""``patchmerger export``: a model as a file of another runtime, checked to be the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchmerger.data.preprocessing import Preprocessing
from patchmerger.data.settings import DataSettings
from patchmerger.exports.settings import SUFFIXES, ExportSettings, Format, Precision


@dataclass(frozen=True)
class Command:
    """Export a model, merged or plain, to ONNX, OpenVINO or torch, and check that the file gives the same outputs.

    The file holds what a user needs to run it: classes, normalisation, crop, image size, mergers. It appears under its
    name only if its logits are those of the eager model within the tolerance: on held-out images of --data, or on
    noise where none are given.

    Args:
        model: A folder of a saved model or run, a safetensors file, a timm architecture with weights, or a name on
            the Hub.
        format: onnx, openvino (a folder of model.xml and model.bin), torch (a torch.export program) or aotinductor
            (such a program, compiled for machines like this one).
        precision: Number format of the weights: fp32, fp16, bf16 (openvino, torch) or int8 (onnx, openvino; needs
            --data).
        out: The file to write: .onnx, .pt2, or for openvino a folder.
        data: Images, labelled or not, to compare on and to calibrate int8 on.
        architecture: For a safetensors file, timm's name of the architecture.
        preprocessing: How images are prepared, in place of what is known of the model.
        image_size: Height and width in pixels; the model's own by default.
        dynamic_batch: Take batches of any size; otherwise one image a call.
        with_preprocessing: Build in normalisation and softmax: uint8 (B, H, W, 3) in, probabilities out.
        opset: Version of ONNX's operators, from 18 to 24; from 23 on, attention is one operator.
        max_difference: The largest difference of a logit that is accepted, in standard deviations of the eager model's
            logits; by default 0.001 for fp32, 0.05 for fp16, 0.4 for bf16, 1.5 for int8.
        min_agreement: The least share of real images with the same class on top that is accepted; by default 0.999 for
            fp32, 0.99 for fp16 and bf16, 0.97 for int8.
        parity_images: Images that both are compared on, at most.
        calibration_images: Images that int8 is calibrated on, at most.
        seed: Which images are drawn, and the noise where there are none.
        overwrite: Replace an export that is there.
    """

    model: str
    out: Path | None = None
    format: Format = "onnx"
    precision: Precision = "fp32"
    data: DataSettings | None = None
    architecture: str | None = None
    preprocessing: Preprocessing | None = None
    image_size: int | None = None
    dynamic_batch: bool = True
    with_preprocessing: bool = False
    opset: int = 23
    max_difference: float | None = None
    min_agreement: float | None = None
    parity_images: int = 128
    calibration_images: int = 256
    seed: int = 0
    overwrite: bool = False

    def run(self, command: str) -> int:
        """Export, and show how near the file is to the model."""
        settings = ExportSettings(
            format=self.format, precision=self.precision, image_size=self.image_size, dynamic_batch=self.dynamic_batch,
            with_preprocessing=self.with_preprocessing, opset=self.opset, max_difference=self.max_difference,
            min_agreement=self.min_agreement, parity_images=self.parity_images,
            calibration_images=self.calibration_images, seed=self.seed,
        )  # fmt: skip
        if self.out is None:
            raise ValueError(f"out is missing: name the file to write, such as --out model{SUFFIXES[self.format]}")
        settings.check_name(self.out)

        from patchmerger.exports.exporting import export
        from patchmerger.reports.exports import show_export

        result = export(
            self.model, self.out, settings, data=self.data, architecture=self.architecture,
            preprocessing=self.preprocessing, overwrite=self.overwrite, command=command,
        )  # fmt: skip
        show_export(result)
        return 0
