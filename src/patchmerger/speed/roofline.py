"""The roofline: the time that a device's two peak rates allow, of matmuls and of memory.

Each matmul or convolution takes at least

    t = max(FLOPs / F, bytes / W)

where:

- F is the peak rate (FLOPs a second) of a large square matmul, W the bandwidth (bytes a second) of a large copy, both
  measured on this device;
- bytes are those of its weights, its inputs and its output, each moved once.

A model takes at least the sum over its matmuls. Norms, activations and additions count as free, as if fused into
the products beside them; FLOPs are those of ``patchmerger.cost``.

A training step has three matmuls for one (the gradients of weights and of inputs are matmuls of the same shapes),
and AdamW, which reads weight, gradient and two moments and writes all but the gradient: 28 bytes a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from patchmerger.costs.counting import flop_counter, on_meta
from patchmerger.hosts.example_inputs import example_input, fit_to_size
from patchmerger.runs.environment import clock, device_name
from patchmerger.speed.settings import FilePrecision
from patchmerger.speed.timed_steps import DTYPES

_OPTIMIZER_BYTES = 28
_CPU, _GPU = (1024, 2**28), (8192, 2**30)
"""Rows of the square matrices, and bytes of the tensor that is copied: far more than caches hold."""


@dataclass(frozen=True)
class PeakRates:
    """The two peak rates of a device, the best of several: of a large square matmul, and of a copy, read and written.

    They depend on the threads of torch; 1 multiply-add = 2 FLOPs.
    """

    device: str
    precision: FilePrecision
    threads: int
    flops_per_second: float
    bytes_per_second: float

    def __str__(self) -> str:
        return (
            f"peak rates of {self.device}, {self.threads} threads: {self.flops_per_second / 1e9:,.0f} GFLOPs/s in "
            f"{self.precision}, {self.bytes_per_second / 1e9:,.1f} GB/s"
        )


@dataclass(frozen=True)
class Matmul:
    """FLOPs of a matmul or convolution, 1 multiply-add = 2 FLOPs, and bytes of its weights, inputs and output."""

    flops: int
    bytes: int


def measure_peak_rates(device: torch.device, precision: FilePrecision, *, seconds: float = 0.5) -> PeakRates:
    """Measure what the device can do at best, each rate for so many seconds at least.

    The matmul is of ``precision`` into the same, of int8 into int32.
    """
    _, size = _sizes(device)
    source = torch.zeros(size // 4, device=device)
    target = torch.zeros_like(source)
    copy = _best("target.copy_(source)", {"source": source, "target": target}, device, seconds)
    return PeakRates(
        device=device_name(device),
        precision=precision,
        threads=torch.get_num_threads(),
        flops_per_second=_peak_matmul_rate(device, precision, seconds=seconds),
        bytes_per_second=2 * size / copy,
    )


def _peak_matmul_rate(device: torch.device, precision: FilePrecision, *, seconds: float) -> float:
    """FLOPs a second of a large square matmul, the best of several."""
    rows, _ = _sizes(device)
    if precision == "int8":
        a, b = (torch.randint(-128, 128, (rows, rows), dtype=torch.int8, device=device) for _ in range(2))
    else:
        a, b = (torch.randn(rows, rows, device=device).to(DTYPES[precision]) for _ in range(2))
    statement = "torch._int_mm(a, b)" if precision == "int8" else "a @ b"
    return 2 * rows**3 / _best(statement, {"torch": torch, "a": a, "b": b}, device, seconds)


def _sizes(device: torch.device) -> tuple[int, int]:
    return _GPU if device.type == "cuda" else _CPU


def _best(statement: str, values: dict[str, Any], device: torch.device, seconds: float) -> float:
    from torch.utils.benchmark import Timer

    timer = Timer(statement, timer=clock(device), globals=values, num_threads=torch.get_num_threads())
    return float(min(timer.blocked_autorange(min_run_time=seconds).times))


def matmuls_of(
    model: nn.Module, image_size: int | tuple[int, int] | None, *, batch_size: int, precision: FilePrecision
) -> list[Matmul]:
    """The matmuls of a forward pass, found in a run on the meta device.

    ``precision`` is that of weights and activations; int8 counts as one byte for each of either, though some stay in
    floating point. The model, which is not changed, may be any that
    :func:`~patchmerger.hosts.example_inputs.example_input` knows an input for.
    """
    if precision == "int8":  # torch's modules do not compute in it; in bf16 each element has two bytes
        in_bf16 = matmuls_of(model, image_size, batch_size=batch_size, precision="bf16")
        return [Matmul(each.flops, each.bytes // 2) for each in in_bf16]
    clone = fit_to_size(on_meta(model), image_size).to(DTYPES[precision])
    example, encoder = example_input(clone, image_size, batch_size=batch_size).images_alone(clone)
    with flop_counter() as counter:
        matmuls = _Matmuls(counter)
        with matmuls:
            example.run(encoder)
    return matmuls.found


def least_seconds(matmuls: Sequence[Matmul], rates: PeakRates, *, training: bool, params: int) -> float:
    """The time that the peak rates allow for a batch, of its forward pass or of a training step.

    ``params`` are the parameters of the model, for the optimiser.
    """
    forward = sum(max(m.flops / rates.flops_per_second, m.bytes / rates.bytes_per_second) for m in matmuls)
    return 3 * forward + _OPTIMIZER_BYTES * params / rates.bytes_per_second if training else forward


class _Matmuls(TorchFunctionMode):
    """Notes every function of torch in which FLOPs are counted, as one matmul (fused attention too)."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.found: list[Matmul] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        output = func(*args, **(kwargs or {}))
        flops = self.counter.get_total_flops() - before
        if flops:
            tensors = [x for x in tree_leaves((args, kwargs, output)) if isinstance(x, Tensor)]
            self.found.append(Matmul(flops, sum(x.numel() * x.element_size() for x in tensors)))
        return output
