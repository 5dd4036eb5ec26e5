"""Open an exported file and run it: one class for all kinds of files, in numpy alone."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchmerger.exports.metadata import read_info
from patchmerger.exports.settings import FILE_ENDINGS
from patchmerger.runs.extras import import_extra

XML_NAME, BIN_NAME = "model.xml", "model.bin"
INFO_NAME = "patchmerger.json"
"""What a ``torch.export`` program keeps its description under, among its extra files."""

_TELEMETRY = "openvino_telemetry"
_ANY_NUMBER = ("PatchMerger",)
_KEEPING = ("TokenLearner", "SiT", "Sinkhorn")
"""Reducers, by the names of their classes: that give M tokens of any number; that change nothing where N = M."""


def import_intel(module: str, what_for: str) -> Any:
    """Import OpenVINO or NNCF as where ``openvino_telemetry`` is not installed, which both allow for.

    It would send what is converted, by processes that it forks, whenever one of them is imported or converts. Where the
    caller has imported it already, it stays as it is.

    Raises:
        MissingExtraError: The library is not installed; the message begins with ``what_for``.
    """
    if _TELEMETRY in sys.modules:
        return import_extra(module, "export", what_for)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_extra(module, "export", what_for)
    finally:
        del sys.modules[_TELEMETRY]


class ExportedModel(ABC):
    """An exported classifier, ready to run on the CPU.

    Shapes: B images of H × W pixels, C classes.

    Args:
        path: The file; for OpenVINO its folder, or the model.xml in it.
        threads: Threads to compute with; the runtime's own choice by default.

    Attributes:
        info: What it is, what it takes and what it gives.
        runtime: The library that runs it, and its version.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or was not written by ``patchmerger export``.
        MissingExtraError: The library that runs it is not installed.
    """

    runtime: str

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path = path
        try:
            self.info = read_info(self._open(threads), path)
        except (RuntimeError, OSError, KeyError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"{path} is damaged, or no {self.kind} file that this machine can run ({reason})"
            ) from error

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind of file, in words."""

    @abstractmethod
    def _open(self, threads: int | None) -> dict[str, Any]:
        """Make it ready; returns the properties that it describes itself by."""

    @abstractmethod
    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """One batch, in the shape and dtype that the file takes."""

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in files_of(self.path))

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch as the file takes it.

        Args:
            images: Normalised float32 (B, 3, H, W); with preprocessing built in, uint8 (B, H, W, 3).

        Returns:
            Logits (B, C), float32; with preprocessing built in, probabilities.

        Raises:
            ValueError: Images of another shape or dtype.
        """
        self._check(images)
        if self.info.dynamic_batch or len(images) == 1:
            return self._run(images)
        return np.concatenate([self._run(images[row : row + 1]) for row in range(len(images))])

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, C) of normalised images (B, 3, H, W), whatever the file takes.

        Where the preprocessing is built in, the images are turned back into pixels, and the logits are the logarithms
        of the probabilities: the same but for one number an image.
        """
        known = self.info.preprocessing
        if known is None or not self.info.with_preprocessing:
            return self(images)
        mean, std = (np.asarray(value, np.float32)[:, None, None] for value in (known.mean, known.std))
        pixels = np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8)  # (B, 3, H, W)
        probabilities = self(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))
        return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))

    def _check(self, images: NDArray[Any]) -> None:
        info = self.info
        size: tuple[object, object] = info.image_size if info.size_step is None else ("H", "W")
        one = (*size, info.channels) if info.with_preprocessing else (info.channels, *size)
        dtype = np.dtype(np.uint8 if info.with_preprocessing else np.float32)
        fits = images.ndim == 4 and len(images) >= 1
        if not fits or any(isinstance(n, int) and n != m for n, m in zip(one, images.shape[1:], strict=True)):
            why = "" if info.size_step is not None else ": that size is fixed in the file"
            raise ValueError(f"images {images.shape} must be (B, {', '.join(map(str, one))}) for {self.path}{why}")
        sides = images.shape[1:3] if info.with_preprocessing else images.shape[2:]
        if info.size_step is not None and any(side % info.size_step or side < 1 for side in sides):
            raise ValueError(
                f"images of {sides[0]} × {sides[1]} pixels do not fit {self.path}: their sides must be multiples of "
                f"{info.size_step}"
            )
        if info.size_step is not None and info.mergers:
            self._check_patches(sides[0] // info.size_step * (sides[1] // info.size_step), sides)
        if images.dtype != dtype:
            raise ValueError(f"images ({images.dtype}) must be {dtype} for {self.path}")

    def _check_patches(self, number: int, sides: tuple[int, ...]) -> None:
        """Refuse images of any size that have fewer patches than the first merger gives, as the model itself does.

        Where they have just as many, methods in :data:`_KEEPING` leave the tokens as they are, which a file, traced on
        larger images, does not.
        """
        first = min(self.info.mergers, key=lambda merger: merger.after)
        least = first.num_tokens + (first.reducer in _KEEPING)
        if first.reducer not in _ANY_NUMBER and number < least:
            raise ValueError(
                f"images of {sides[0]} × {sides[1]} pixels have {number} patches, and {self.path}, which makes "
                f"{first.num_tokens} tokens of them ({first.reducer}), takes images of {least} patches or more"
            )


class OnnxModel(ExportedModel):
    """An ONNX file in ONNX Runtime."""

    kind = "ONNX"

    def _open(self, threads: int | None) -> dict[str, Any]:
        ort = import_extra("onnxruntime", "export", "an ONNX file")
        self.runtime = f"onnxruntime {ort.__version__}"
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each error of ONNX Runtime is a class of its own, right below Exception
            raise RuntimeError(str(error)) from error
        self._input = self._session.get_inputs()[0].name
        found: dict[str, Any] = self._session.get_modelmeta().custom_metadata_map
        return found

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._session.run(None, {self._input: images})[0]
        return output


class OpenVinoModel(ExportedModel):
    """OpenVINO's IR, on the CPU; it computes in the number format that the file was exported in, where it can."""

    kind = "OpenVINO"

    def _open(self, threads: int | None) -> dict[str, Any]:
        openvino = import_intel("openvino", "an OpenVINO file")
        self.runtime = f"openvino {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        model = core.read_model(self.path / XML_NAME if self.path.is_dir() else self.path)
        found = {}
        if model.has_rt_info(["patchmerger"]):
            found = {name: str(value) for name, value in model.get_rt_info(["patchmerger"]).value.items()}
        # By itself OpenVINO computes fp32 and fp16 in bf16 where the machine can: then neither is what it is called.
        half = "f16" if "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        computed = {"fp32": "f32", "fp16": half, "bf16": "bf16"}.get(json.loads(found.get("precision", '""')))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if computed is not None:
            config["INFERENCE_PRECISION_HINT"] = computed
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(model, "CPU", config)
        return found

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        output: NDArray[np.float32] = self._compiled({0: images})[0]
        return output.copy()  # its memory is used again by the next batch


class TorchModel(ExportedModel):
    """A ``torch.export`` program, run by torch eagerly."""

    kind = "torch.export"
    _program: Any

    def _open(self, threads: int | None) -> dict[str, Any]:
        import torch

        self.runtime = f"torch {torch.__version__}"
        extra = {INFO_NAME: ""}
        self._program = torch.export.load(self.path, extra_files=extra).module()
        return dict(json.loads(extra[INFO_NAME] or "{}"))

    def _run(self, images: NDArray[Any]) -> NDArray[np.float32]:
        import torch

        try:
            with torch.inference_mode():
                output: NDArray[np.float32] = self._program(torch.from_numpy(images)).numpy()
        except AssertionError as error:  # a guard of the program, on a size
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"images {images.shape} are of a size that {self.path} does not take ({reason})"
            ) from error
        return output


class AotInductorModel(TorchModel):
    """A package of AOTInductor: such a program, compiled for one kind of machine."""

    kind = "AOTInductor"

    def _open(self, threads: int | None) -> dict[str, Any]:
        import torch
        from torch._inductor import aoti_load_package

        self.runtime = f"AOTInductor, torch {torch.__version__}"
        with zipfile.ZipFile(self.path) as archive:
            name = next(each for each in archive.namelist() if each.endswith("wrapper_metadata.json"))
            found = json.loads(json.loads(archive.read(name)).get("patchmerger", "{}"))
        self._program = aoti_load_package(str(self.path))
        return dict(found)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an exported file by its ending, or a folder of OpenVINO's; nothing is opened."""
    place = Path(path).expanduser()
    return place.suffix in FILE_ENDINGS or (place / XML_NAME).is_file()


def open_exported(path: str | os.PathLike[str], *, threads: int | None = None) -> ExportedModel:
    """Open a file that ``patchmerger export`` wrote, whatever its format.

    A file of torch (.pt2) can run any code when it is opened: open those alone that come from somebody you trust.

    Args:
        path: The file; for OpenVINO its folder, or the model.xml in it.
        threads: Threads to compute with, of ONNX Runtime and OpenVINO; their own choice by default. Torch computes
            with those of the process.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or was not written by ``patchmerger export``.
        MissingExtraError: The library that runs it is not installed; the message names the extra.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"model ({path}) does not exist")
    if not is_exported(place):
        raise ValueError(
            f"model ({path}) is no exported file: they end with .onnx or .pt2, or are folders with {XML_NAME}"
        )
    if place.suffix == ".onnx":
        return OnnxModel(place, threads)
    if place.suffix == ".pt2":
        return (AotInductorModel if _is_compiled(place) else TorchModel)(place, threads)
    if len(missing := files_of(place)) < 2:
        raise ValueError(f"model ({path}) has no {BIN_NAME} beside {missing[0].name}, which holds the weights")
    return OpenVinoModel(place, threads)


def files_of(path: Path) -> list[Path]:
    """The files that an export is made of, as far as they are there."""
    if path.is_dir():
        return [path / name for name in (XML_NAME, BIN_NAME) if (path / name).is_file()]
    if path.suffix == ".xml":
        return [file for file in (path, path.with_suffix(".bin")) if file.is_file()]
    return [path]


def _is_compiled(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/aotinductor/" in name for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged, or no file of torch.export ({error})") from error
