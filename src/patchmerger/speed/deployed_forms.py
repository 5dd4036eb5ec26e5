"""The forms that a model is deployed in: torch, eager or compiled, and exported files; each a function of images."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchmerger.costs.model_cost import known_flops
from patchmerger.data.loading import DataLike
from patchmerger.data.preprocessing import Preprocessing
from patchmerger.exports.exporting import export
from patchmerger.exports.image_sizes import SizedModel, in_size
from patchmerger.exports.parity import Parity
from patchmerger.exports.runtimes import ExportedModel, files_of, open_exported
from patchmerger.exports.settings import SUFFIXES, ExportSettings, Format
from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.models.classifier import Classifier
from patchmerger.models.finding import weights_fingerprint
from patchmerger.runs.run_folder import fingerprint
from patchmerger.speed.candidates import build_candidates
from patchmerger.speed.compiling import compiled
from patchmerger.speed.roofline import Matmul, matmuls_of
from patchmerger.speed.settings import OF_EXPORTS, BenchSettings, FilePrecision, Form, has_precision, listed
from patchmerger.speed.timed_steps import DTYPES

_OF_FILES = {name: ours for ours, name in OF_EXPORTS.items()}
_CALIBRATION = 128
_UNKNOWN = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class FormKey:
    """What one form is: the name of the model or of the file, its form as in ``BenchSettings.formats``."""

    model: str
    merged: bool
    form: Form
    precision: FilePrecision

    def __str__(self) -> str:
        return f"{self.model} {'merged' if self.merged else 'plain'}, {self.form}, {self.precision}"


@dataclass(frozen=True)
class DeployedForm:
    """A form that is ready to run: from normalised float32 images (B, 3, H, W) to logits (B, C).

    ``size`` is bytes of the weights, or of the file; ``parity`` is how near a file is to its model, ``None`` for torch,
    and where it was not compared on real images; ``float_layers`` stayed in floating point, with int8. ``matmuls`` are
    those of a batch of so many images, ``None`` for a file whose model is not known.
    """

    key: FormKey
    run: Callable[[NDArray[Any]], Any]
    runtime: str
    image_size: tuple[int, int]
    channels: int
    size: int
    parity: Parity | None
    flops: int | None
    float_layers: tuple[str, ...] = ()
    matmuls: Callable[[int], list[Matmul]] | None = None


def form_keys(models: dict[str, list[bool]], settings: BenchSettings) -> list[FormKey]:
    """All forms in each number format that they have, of models by name, each merged or plain as listed."""
    return [
        FormKey(name, merged, form, precision)
        for name, kinds in models.items()
        for form in settings.formats or ()
        for precision in listed(settings.precision)
        for merged in kinds
        if has_precision(form, precision)
    ]


class FormBuilder:
    """Makes the forms of one model, plain and merged, with random weights for architectures of timm.

    ``data`` are images to calibrate on and to compare on; noise where there are none. Files are written to ``folder``.
    ``fingerprint`` is of the weights.
    """

    def __init__(self, name: str, settings: BenchSettings, data: DataLike | None, folder: Path) -> None:
        self.name, self.settings, self.data, self.folder = name, settings, data, folder
        found = build_candidates(name, settings, seed=settings.seed)
        self.models = {kind: in_size(found.models[kind].eval(), settings.image_size) for kind in ("plain", "merged")}
        self.preprocessing = found.preprocessing or _UNKNOWN
        self.fingerprint = weights_fingerprint(found.models["merged"])

    def make(self, key: FormKey, *, again: bool = False) -> DeployedForm:
        """One form; where it is made ``again``, a file of it that is in the folder is taken, whose parity is known."""
        model = self.models["merged" if key.merged else "plain"]
        made = _in_torch(model, key) if key.form in ("eager", "frozen") else self._exported(model, key, again)
        size = None if model.image_size == image_size_of(model.net) else model.image_size
        flops = known_flops(model.net, size)
        if flops is None:
            return made

        def matmuls(batch: int) -> list[Matmul]:
            return matmuls_of(model.net, size, batch_size=batch, precision=key.precision)

        return replace(made, flops=flops, matmuls=matmuls)

    def _exported(self, model: SizedModel, key: FormKey, again: bool) -> DeployedForm:
        noise, form = self.data is None, cast(Format, key.form)
        out = self.folder / f"{fingerprint(key)[:16]}{SUFFIXES[form]}"
        if again:
            with suppress(ValueError, OSError):
                return _of_file(open_exported(out, threads=torch.get_num_threads()), key, model.image_size)
        settings = ExportSettings(
            format=form, precision=OF_EXPORTS[key.precision], seed=self.settings.seed,
            parity_images=self.settings.images, calibration_images=_CALIBRATION,
            max_difference=float("inf") if noise else None, min_agreement=0.0 if noise else None,
            image_size=self.settings.image_size,
        )  # fmt: skip
        data = self.data
        height, _ = model.image_size
        if noise and key.precision == "int8":
            shape, generator = (2 * _CALIBRATION, 3, height, height), torch.Generator().manual_seed(0)
            data = list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
        for old in self.folder.glob(f"{out.name}*"):  # of an attempt that was cut short
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        made = export(model.net, out, settings, data=data, preprocessing=self.preprocessing)
        file = _of_file(open_exported(out, threads=torch.get_num_threads()), key, model.image_size)
        return replace(file, parity=None if noise else made.parity, float_layers=made.info.float_layers)


def file_fingerprint(name: str) -> str:
    """A hash of the content of an exported file."""
    digest = hashlib.sha256()
    for path in files_of(Path(name).expanduser()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def given_file(name: str, settings: BenchSettings, *, alone: bool) -> DeployedForm:
    """A file that is measured as it is; it bears its whole path where it is not ``alone`` with its name."""
    exported = open_exported(name, threads=torch.get_num_threads())
    info, size = exported.info, settings.image_size
    key = FormKey(exported.path.name if alone else name, bool(info.mergers), info.format, _OF_FILES[info.precision])
    return _of_file(exported, key, info.image_size if info.size_step is None or size is None else (size, size))


def _of_file(exported: ExportedModel, key: FormKey, size: tuple[int, int]) -> DeployedForm:
    """An exported file as a form; where the preprocessing is built in, it runs on pixels of noise."""
    info = exported.info

    @cache
    def pixels(batch: int) -> NDArray[Any]:
        return np.random.default_rng(0).integers(0, 256, (batch, *size, info.channels), dtype=np.uint8)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        return exported(pixels(len(images)) if info.with_preprocessing else images)

    return DeployedForm(key, run, exported.runtime, size, info.channels, exported.size, None, None, info.float_layers)


def _in_torch(model: SizedModel, key: FormKey) -> DeployedForm:
    dtype = DTYPES[key.precision]
    net = Classifier(copy.deepcopy(model.net).requires_grad_(False).to(dtype)).eval()
    net.arguments = model.arguments
    fast = compiled(net, "frozen") if key.form == "frozen" else net

    def run(images: NDArray[Any]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = fast(torch.from_numpy(images).to(dtype))
        return logits

    size = sum(p.numel() * p.element_size() for p in net.parameters())
    return DeployedForm(key, run, f"torch {torch.__version__}", model.image_size, net.channels, size, None, None)
