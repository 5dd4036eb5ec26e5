"""Measured speed of several models side by side, fair on a noisy machine: they take turns, and pairs are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from patchmerger.costs.model_cost import cost
from patchmerger.hosts import UnsupportedModelError
from patchmerger.hosts.example_inputs import image_size_of
from patchmerger.runs.environment import environment, find_device
from patchmerger.speed.compiling import check_compile
from patchmerger.speed.measurement import Measurement, Timing
from patchmerger.speed.options import Compile, Precision
from patchmerger.speed.timed_steps import DTYPES, TimedStep, take_turns, timed_step


def measure(
    models: Mapping[str, nn.Module],
    *,
    batch_size: int,
    image_size: int | tuple[int, int] | None = None,
    training: bool = False,
    precision: Precision = "float32",
    compile: Compile = False,
    rounds: int = 20,
    warmup: int = 3,
    device: torch.device | str | None = None,
    baseline: str | None = None,
    round_seconds: float = 0.1,
    seed: int = 0,
    least_seconds: Mapping[str, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Measure the time of a batch for several models, on random images, with ``torch.utils.benchmark.Timer``.

    In every round each model takes its turn, in an order that rotates, and is compared with the baseline in the
    same round: what slows the machine down for a while slows both. The models are not changed; copies run.

    Inference runs in eval mode, on a copy cast to ``precision``. A training step is forward, cross-entropy on
    random labels, backward, AdamW (fused where there is such a kernel) and ``zero_grad``; weights stay float32,
    ``"bf16"`` and ``"fp16"`` run under autocast, ``"fp16"`` with a gradient scaler.

    Args:
        models: Models by name.
        batch_size: Images in a batch.
        image_size: Pixels, one number or (height, width); the copies' input size is set to it. ``None`` is the
            baseline's own.
        training: Measure a training step instead of inference.
        precision: ``"float32"``, ``"bf16"`` or ``"fp16"``.
        compile: Compile the copies (``torch.compile`` with ``fullgraph=True``), ``"frozen"`` with constant weights
            (:func:`patchmerger.speed.compiling.compiled`). What this process compiled before is dropped first
            (``torch.compiler.reset``), lest torch's limit on recompilation is reached.
        rounds: How often each model is timed.
        warmup: Untimed steps of each model before the first round; one more before every turn is the timer's own.
        device: Where to measure; ``None`` is where the baseline is.
        baseline: The name of the model to compare with; ``None`` is the first.
        round_seconds: Each turn lasts at least so long; of quick models it times several steps.
        seed: Of the random images and labels.
        least_seconds: Of each model, the time of a batch that a roofline allows; see ``patchmerger.speed.roofline``.
        progress: Called with the rounds done and the rounds in all; ``None`` shows a bar, on a terminal only.

    Returns:
        The measurement. An interrupt (Ctrl-C) after at least 3 rounds gives what was measured so far.

    Raises:
        ValueError: A number below 1, an unknown precision or baseline, a device that is not there, a model on the
            meta device, an image size that does not fit, or a model that cannot be trained with cross-entropy.
    """
    baseline = _check_models(models, baseline)
    _check_numbers(batch_size=batch_size, rounds=rounds, warmup=warmup)
    if precision not in DTYPES:
        raise ValueError(f"precision ({precision!r}) must be one of {', '.join(map(repr, DTYPES))}")
    first = next(models[baseline].parameters(), torch.empty(0))
    device = find_device(first.device if device is None else device)
    sizes = _sizes(models, baseline, image_size)
    flops = {name: _flops(model, sizes[name]) for name, model in models.items()}
    check_compile(compile, training=training)
    if compile:
        torch.compiler.reset()

    steps: dict[str, TimedStep] = {}
    memory: dict[str, tuple[int | None, int | None]] = {}
    for name, model in models.items():
        steps[name] = timed_step(name, model, batch_size, sizes[name], training, precision, compile, device, seed)
        for _ in range(warmup):
            steps[name]()
        memory[name] = steps[name].memory(device)

    times, interrupted = take_turns(steps, rounds, round_seconds, progress)
    timings = []
    for name, model in models.items():
        ratios = torch.tensor(times[name], dtype=torch.float64) / torch.tensor(times[baseline], dtype=torch.float64)
        seconds = torch.tensor(times[name], dtype=torch.float64).quantile(0.5).item()
        low, ratio, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        own, other = flops[name], flops[baseline]
        timings.append(
            Timing(
                name=name,
                seconds=seconds,
                images_per_second=batch_size / seconds,
                ratio=ratio,
                ratio_quartiles=(low, high),
                predicted_speedup=other / own if own and other else None,
                roofline_speedup=least_seconds[baseline] / least_seconds[name] if least_seconds else None,
                params=sum(p.numel() for p in model.parameters()),
                peak_memory=memory[name][0],
                activation_memory=memory[name][1],
                round_seconds=tuple(times[name]),
            )
        )
    return Measurement(
        timings=tuple(timings),
        baseline=baseline,
        batch_size=batch_size,
        image_size=_pixels(models[baseline], sizes[baseline]),
        training=training,
        precision=precision,
        compile=compile,
        warmup=warmup,
        interrupted=interrupted,
        environment=environment(device),
    )


def _flops(model: nn.Module, size: tuple[int, int] | None) -> int | None:
    try:
        return cost(model, size).flops
    except UnsupportedModelError:
        return None


def _sizes(
    models: Mapping[str, nn.Module], baseline: str, image_size: int | tuple[int, int] | None
) -> dict[str, tuple[int, int] | None]:
    """The image size to give to each model; ``None`` where it is the model's own and nothing else was asked for."""
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        _check_numbers(image_size=min(size))
        return dict.fromkeys(models, size)
    own = _pixels(models[baseline], None)
    return {name: None if _own(model) == own else own for name, model in models.items()}


def _own(model: nn.Module) -> tuple[int, int] | None:
    try:
        return _pixels(model, None)
    except ValueError:  # a model that does not say its size takes that of the baseline
        return None


def _pixels(model: nn.Module, size: tuple[int, int] | None) -> tuple[int, int]:
    return image_size_of(model) if size is None else size


def _check_models(models: Mapping[str, nn.Module], baseline: str | None) -> str:
    if not models:
        raise ValueError("models is empty: give at least one model by name")
    baseline = next(iter(models)) if baseline is None else baseline
    if baseline not in models:
        raise ValueError(f"baseline ({baseline!r}) must be one of the models: {', '.join(models)}")
    for name, model in models.items():
        if any(p.is_meta for p in model.parameters()):
            raise ValueError(f"models[{name!r}] is on the meta device: it has no weights to run")
    return baseline


def _check_numbers(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} ({number}) must be at least 1")
