"""What a measurement of speed is asked for: TimingSettings of one, BenchSettings of a grid of them; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from patchmerger.exports.settings import PRECISIONS
from patchmerger.exports.settings import Precision as ExportPrecision
from patchmerger.reducers.names import ReducerName
from patchmerger.runs.checks import check_choices, check_counts

Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
"""The number format: inference casts the weights to it, training uses autocast."""

FilePrecision: TypeAlias = Literal["float32", "bf16", "fp16", "int8"]
"""The number format of the weights of exported files too, which may be of whole numbers."""

Form: TypeAlias = Literal["eager", "frozen", "onnx", "openvino", "torch", "aotinductor"]
"""What a model is deployed as: in torch eagerly or compiled with frozen weights, or an exported file."""

OF_EXPORTS: dict[FilePrecision, ExportPrecision] = {
    "float32": "fp32", "bf16": "bf16", "fp16": "fp16", "int8": "int8"
}  # fmt: skip
"""What an export calls each number format."""

Compile: TypeAlias = bool | Literal["frozen"]
"""Not compiled, compiled, or compiled with frozen weights."""

Mode: TypeAlias = Literal["both", "inference", "training"]
"""Which steps are timed."""

Against: TypeAlias = Literal["vit-pytorch"]
"""Another library whose merged ViT of the same shape is timed too."""


@dataclass(frozen=True)
class TimingSettings:
    """How models are timed side by side.

    Args:
        batch_size: Images in a batch.
        training: Time a training step instead of inference.
        precision: "float32", "bf16" or "fp16". Inference casts the weights, training uses autocast.
        compile: Compile the models with ``torch.compile``, or "frozen" with constant weights, for inference.
        rounds: How often each model is timed.
        warmup: Untimed steps of each model before the first round.
        round_seconds: Each timing lasts at least so long; of quick models it holds several steps.
        device: Where to measure; by default where the models are.
        seed: Of the random images and labels.
    """

    batch_size: int = 16
    training: bool = False
    precision: Precision = "float32"
    compile: Compile = False
    rounds: int = 20
    warmup: int = 3
    round_seconds: float = 0.1
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, "batch_size", "rounds", "warmup")
        check_choices(self)
        check_compile(self.compile, training=self.training)


@dataclass(frozen=True)
class BenchSettings:
    """What ``bench`` measures: a row for each combination of the lists.

    Args:
        architecture: Timm's name of the architecture, for models that are safetensors files.
        num_tokens: Tokens that go on after the merge; a list for several mergers.
        after: Block to merge after, counted from 1; half the depth by default; a list for several mergers.
        reducer: The method that reduces tokens, such as "tome", "topk" or "dpcknn"; "patchmerger" by default.
        against: Measure another library's merged ViT of the same shape too: "vit-pytorch".
        image_size: Height and width in pixels; the model's own by default.
        batch_size: Images in a batch; a list for several rows.
        precision: Number format: "float32", "bf16" or "fp16", or a list. Inference casts the weights, training uses
            autocast. With ``formats`` "int8" too; each has those that it knows.
        formats: What models are deployed as, on the CPU: a list of "eager", "frozen" (compiled with constant weights),
            "onnx", "openvino", "torch" and "aotinductor". Plain and merged are then measured in all of them, in turn:
            latency, images a second, size, and how exported files agree with their model.
        images: With ``formats``, how many images exported files are compared on, at most.
        compile: Compile all models with ``torch.compile``: true, or "frozen" for inference with constant weights; a
            list for rows of each. Training steps have no rows of "frozen".
        mode: What to measure: "inference", "training" or "both".
        profile: Measure where the time of a forward pass goes too, part by part, not compiled.
        rounds: How often each model is timed in a row.
        warmup: Untimed steps of each model before the first round.
        device: Device, such as "cpu" or "cuda", or a list; the accelerator by default where there is one.
        seed: Of the random weights, images and labels.
    """

    architecture: str | None = None
    num_tokens: int | list[int] = 8
    after: int | list[int] | None = None
    reducer: ReducerName = "patchmerger"
    against: Against | None = None
    image_size: int | None = None
    batch_size: int | list[int] = 16
    precision: FilePrecision | list[FilePrecision] = "bf16"
    formats: list[Form] | None = None
    images: int = 128
    compile: Compile | list[Compile] = False
    mode: Mode = "both"
    profile: bool = False
    rounds: int = 20
    warmup: int = 3
    device: str | list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "precision", "compile", "device"):
            values = listed(getattr(self, name))
            if len(set(values)) < len(values) or not values:
                raise ValueError(f"{name} ({values}) must be different ones, and at least one")
        check_choices(self)
        check_counts(self, "batch_size", "rounds", "warmup", "image_size", "images")
        self._check_formats()
        if self.against is not None and self.reducer != "patchmerger":
            raise ValueError(f"against ({self.against!r}) has a PatchMerger: leave reducer ({self.reducer!r}) out")
        for compile in listed(self.compile):
            check_compile(compile, training=self.mode == "training")

    def check_deployed(self, *, files_alone: bool = False) -> None:
        """Refuse what means nothing to deployed models, or, where exported files stand alone, to these.

        Raises:
            ValueError: Such a setting is given.
        """
        deployed = {
            "against": self.against is not None, "profile": self.profile, "compile": self.compile is not False,
            "mode": self.mode == "training", "device": self.device not in (None, "cpu"),
        }  # fmt: skip
        made = {
            "architecture": self.architecture is not None, "num_tokens": self.num_tokens != BenchSettings.num_tokens,
            "after": self.after is not None, "reducer": self.reducer != BenchSettings.reducer,
            "formats": self.formats is not None, "precision": self.precision != BenchSettings.precision,
        }  # fmt: skip
        for given, why in (
            (deployed, "with formats and exported files, which are measured in inference on the CPU"),
            (made if files_alone else {}, "to exported files, which are measured as they are"),
        ):
            if wrong := [name for name, is_given in given.items() if is_given]:
                raise ValueError(f"{wrong[0]} ({getattr(self, wrong[0])!r}) means nothing {why}: leave it out")

    def _check_formats(self) -> None:
        if self.formats is None:
            if "int8" in listed(self.precision):
                raise ValueError(
                    "precision ('int8') must be one of 'float32', 'bf16', 'fp16': int8 is of exported files, with "
                    "formats such as [onnx, openvino]"
                )
            return
        if len(set(self.formats)) < len(self.formats) or not self.formats:
            raise ValueError(f"formats ({list(self.formats)}) must be different ones, and at least one")
        self.check_deployed()
        if not any(has_precision(form, precision) for form in self.formats for precision in listed(self.precision)):
            raise ValueError(
                f"precision ({', '.join(listed(self.precision))}) is of none of formats ({', '.join(self.formats)}): "
                "float32 is of all, bf16 of all but onnx, fp16 of all, int8 of onnx and openvino"
            )


def has_precision(form: Form, precision: FilePrecision) -> bool:
    """Whether a form comes in a number format."""
    if form == "eager" or form == "frozen":
        return precision in get_args(Precision)
    return OF_EXPORTS[precision] in PRECISIONS[form]


def listed(value: Any) -> list[Any]:
    """The values of a setting that is one value or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]


def check_compile(compile: Compile, *, training: bool) -> None:
    """Raise ``ValueError`` for a value of ``compile`` that is unknown, or would freeze weights that are trained."""
    if compile not in (True, False, "frozen"):
        raise ValueError(f"compile ({compile!r}) must be true, false or 'frozen'")
    if compile == "frozen" and training:
        raise ValueError("compile ('frozen') makes constants of the weights, for inference alone: give true to train")


def compile_name(compile: Compile) -> str:
    """As tables and errors call it."""
    if not compile:
        return "eager"
    return "compiled, frozen" if compile == "frozen" else "compiled"
