"""What a benchmark times, a batch of inference or a training step, and the turns that models take."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Precision: TypeAlias = Literal["float32", "bf16", "fp16"]
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDS_TO_KEEP = 3


def timed_step(
    name: str,
    model: nn.Module,
    batch_size: int,
    size: tuple[int, int],
    training: bool,
    precision: Precision,
    compile: bool,
    device: torch.device,
    seed: int,
) -> Callable[[], None]:
    """What is timed: one batch through a copy of the model."""
    dtype = DTYPES[precision]
    clone = copy.deepcopy(model).train(training)
    clone.zero_grad(set_to_none=True)
    own_size = getattr(getattr(clone, "patch_embed", None), "img_size", None)
    if own_size is not None and tuple(own_size) != size and not getattr(clone, "dynamic_img_size", False):
        clone.set_input_size(size)  # type: ignore[operator]
    clone.to(device=device, dtype=torch.float32 if training else dtype)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch_size, getattr(model, "in_chans", 3), *size, generator=generator).to(device)
    if not training:
        return _inference_step(_compiled(clone, compile), images.to(dtype))
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=precision != "float32"):
        output = clone(images)
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"models[{name!r}] gives {shape}; a training step needs one row of classes for each image")
    if not any(p.requires_grad for p in clone.parameters()):
        raise ValueError(f"models[{name!r}] has no parameter that requires a gradient: there is nothing to train")
    labels = torch.randint(output.shape[1], (batch_size,), generator=generator).to(device)
    return _training_step(clone, _compiled(clone, compile), images, labels, precision)


def _compiled(model: nn.Module, compile: bool) -> Callable[[Tensor], Tensor]:
    # fullgraph: a model that falls back to eager in places must not pass for a compiled one.
    return torch.compile(model, fullgraph=True, dynamic=False) if compile else model


def _inference_step(forward: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            forward(images)

    return step


def _training_step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, precision: Precision
) -> Callable[[], None]:
    optimizer = _adamw([p for p in model.parameters() if p.requires_grad])
    scaler = torch.amp.GradScaler(images.device.type, enabled=precision == "fp16")

    def step() -> None:
        with torch.autocast(images.device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = F.cross_entropy(forward(images), labels)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    try:
        return torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(parameters, lr=1e-4)


def warm_up(step: Callable[[], None], warmup: int, device: torch.device, held: int) -> int | None:
    """Run the step untimed; on a GPU, the most memory that it needs, ``held`` being that of others."""
    for _ in range(warmup):
        step()
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


def take_turns(
    steps: Mapping[str, Callable[[], None]],
    rounds: int,
    round_seconds: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, list[float]], bool]:
    """Seconds of a step in each round, by name, and whether the rounds were cut short."""
    from torch.utils.benchmark import Timer  # slow to import, and may log about CUDA

    names = list(steps)
    timers = {
        name: Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        for name, step in steps.items()
    }
    times: dict[str, list[float]] = {name: [] for name in names}
    with _progress(progress, rounds) as report:
        for done in range(rounds):
            first = done % len(names)
            try:
                turn = {
                    name: timers[name].blocked_autorange(min_run_time=round_seconds).median
                    for name in names[first:] + names[:first]
                }
            except KeyboardInterrupt:
                if done < _ROUNDS_TO_KEEP:
                    raise
                return times, True
            for name, seconds in turn.items():
                times[name].append(seconds)
            report(done + 1, rounds)
    return times, False


@contextmanager
def _progress(progress: Callable[[int, int], None] | None, rounds: int) -> Iterator[Callable[[int, int], None]]:
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda *_: None)
        return
    from rich.console import Console
    from rich.progress import Progress

    # Refreshed between rounds only: a thread that draws would be timed too.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("measuring", total=rounds)

        def report(done: int, _: int) -> None:
            bar.update(task, completed=done, refresh=True)

        yield report
