"""Measured speed of several models side by side, fair on a noisy machine: they take turns, and pairs are compared."""

from __future__ import annotations

import copy
import difflib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import timm
import torch
from torch import nn

from patchmerger.costs import cost
from patchmerger.environment import environment, find_device
from patchmerger.hosts import UnsupportedModelError
from patchmerger.insertion import insert, mergers
from patchmerger.measurement import Bench, Measurement, Timing
from patchmerger.timed_steps import DTYPES, Precision, take_turns, timed_step, warm_up

Mode: TypeAlias = Literal["both", "inference", "training"]


def measure(
    models: Mapping[str, nn.Module],
    *,
    batch_size: int,
    image_size: int | tuple[int, int] | None = None,
    training: bool = False,
    precision: Precision = "float32",
    compile: bool = False,
    rounds: int = 20,
    warmup: int = 3,
    device: torch.device | str | None = None,
    baseline: str | None = None,
    round_seconds: float = 0.1,
    seed: int = 0,
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
        compile: Compile the copies (``torch.compile`` with ``fullgraph=True``). What this process compiled before
            is dropped first (``torch.compiler.reset``), lest torch's limit on recompilation is reached.
        rounds: How often each model is timed.
        warmup: Untimed steps of each model before the first round; one more before every turn is the timer's own.
        device: Where to measure; ``None`` is where the baseline is.
        baseline: The name of the model to compare with; ``None`` is the first.
        round_seconds: Each turn lasts at least so long; of quick models it times several steps.
        seed: Of the random images and labels.
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
    size = _image_size(models[baseline], image_size)
    flops = {name: _flops(model, size) for name, model in models.items()}
    if compile:
        torch.compiler.reset()

    steps, peaks = {}, {}
    for name, model in models.items():
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        steps[name] = timed_step(name, model, batch_size, size, training, precision, compile, device, seed)
        peaks[name] = warm_up(steps[name], warmup, device, held)

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
                params=sum(p.numel() for p in model.parameters()),
                peak_memory=peaks[name],
                round_seconds=tuple(times[name]),
            )
        )
    return Measurement(
        timings=tuple(timings),
        baseline=baseline,
        batch_size=batch_size,
        image_size=size,
        training=training,
        precision=precision,
        compile=compile,
        warmup=warmup,
        interrupted=interrupted,
        environment=environment(device),
    )


def _flops(model: nn.Module, size: tuple[int, int]) -> int | None:
    try:
        return cost(model, size).flops
    except UnsupportedModelError:
        return None


def _image_size(model: nn.Module, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        image_size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if image_size is None:
        raise ValueError(f"image_size must be given: {type(model).__name__} does not tell its own")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    _check_numbers(image_size=min(height, width))
    return height, width


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


def bench(
    model: str,
    *,
    num_tokens: int | list[int] = 8,
    after: int | list[int] | None = None,
    batch_size: int = 16,
    image_size: int | None = None,
    precision: Precision = "bf16",
    mode: Mode = "both",
    compile: bool = False,
    rounds: int = 20,
    warmup: int = 3,
    device: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    overwrite: bool = False,
) -> Bench:
    """Measure how much faster a Vision Transformer is with a merger than without.

    Both have random weights and run on random images, for speed does not depend on them. They take turns, so
    that a noisy machine slows both alike.

    Args:
        model: Name of a Vision Transformer in timm, such as vit_small_patch16_224.
        num_tokens: Tokens that go on after the merge; a list for several mergers.
        after: Block to merge after, counted from 1; half the depth by default; a list for several mergers.
        batch_size: Images in a batch.
        image_size: Height and width in pixels; the model's own by default.
        precision: Number format: float32, bf16 or fp16. Inference casts the weights, training uses autocast.
        mode: What to measure: inference, training or both.
        compile: Compile both models with torch.compile.
        rounds: How often each model is timed.
        warmup: Untimed steps of each model before the first round.
        device: Device, such as cpu or cuda; the accelerator by default where there is one.
        seed: Seed of the random weights, images and labels.
        out: JSON file to write the result to.
        overwrite: Replace that file if it exists.

    Returns:
        The measurements, as printed and as written.

    Raises:
        ValueError: Any argument that cannot work, before anything is measured.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    command = _command(locals())
    _check_numbers(batch_size=batch_size, rounds=rounds, warmup=warmup)
    if mode not in get_args(Mode):
        raise ValueError(f"mode ({mode!r}) must be one of {', '.join(map(repr, get_args(Mode)))}")
    if precision not in DTYPES:
        raise ValueError(f"precision ({precision!r}) must be one of {', '.join(map(repr, DTYPES))}")
    place = find_device(device)
    _check_out(out, overwrite)
    plain, merged = (each.to(place) for each in _build(model, image_size, num_tokens, after, seed))
    results: dict[str, Measurement] = {}
    for phase in ("inference", "training") if mode == "both" else (mode,):
        try:
            results[phase] = measure(
                {"plain": plain, "merged": merged},
                batch_size=batch_size,
                image_size=image_size,
                training=phase == "training",
                precision=precision,
                compile=compile,
                rounds=rounds,
                warmup=warmup,
                seed=seed,
            )
        except KeyboardInterrupt:
            if not results:
                raise
            break
        if results[phase].interrupted:
            break
    inserted = mergers(merged)
    bench = Bench(
        model=model,
        num_tokens=tuple(merger.num_tokens for merger in inserted),
        after=tuple(merger.after for merger in inserted),
        inference=results.get("inference"),
        training=results.get("training"),
        command=command,
    )
    if out is not None:
        with out.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(json.dumps(bench.as_dict(), indent=1) + "\n")
    return bench


def _build(
    name: str, image_size: int | None, num_tokens: int | list[int], after: int | list[int] | None, seed: int
) -> tuple[nn.Module, nn.Module]:
    """The timm model with random weights and a merged copy; refused first where it cannot be measured."""
    if not timm.is_model(name):
        close: Sequence[str] = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models('vit_*') lists them"
        raise ValueError(f"model ({name!r}) is not known to timm{hint}")
    with torch.device("meta"):
        cost(timm.create_model(name, pretrained=False), image_size)
    options: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain: nn.Module = timm.create_model(name, pretrained=False, **options)
        return plain, insert(copy.deepcopy(plain), num_tokens, after)


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is None:
        return
    if out.is_dir():
        raise ValueError(f"out ({out}) is a folder: name a file in it")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out ({out}) exists already: take another name, or --overwrite true")
    out.parent.mkdir(parents=True, exist_ok=True)


def _command(arguments: Mapping[str, Any]) -> str:
    """The command line that these arguments come from."""
    words = ["patchmerger", "bench", str(arguments["model"])]
    for name, value in arguments.items():
        if value is not None and name not in ("model", "overwrite"):
            words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)
