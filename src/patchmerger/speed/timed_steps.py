"""What a benchmark times, a batch of inference or a training step, and the turns that models take."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.hosts.example_inputs import Example, example_input, fit_to_size
from patchmerger.speed.compiling import compiled
from patchmerger.speed.memory import peak_of
from patchmerger.speed.options import Compile, Precision

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDS_TO_KEEP = 3


@dataclass(frozen=True)
class TimedStep:
    """What is timed: one batch through a copy of a model.

    Attributes:
        run: The step.
        model: The copy.
        optimizer: Of a training step; ``None`` in inference.
    """

    run: Callable[[], None]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    def __call__(self) -> None:
        """Run one step."""
        self.run()

    def memory(self, device: torch.device) -> tuple[int | None, int | None]:
        """Bytes at most in all and of activations alone, which is all but weights, gradients and optimiser state."""
        held = [*self.model.parameters(), *self.model.buffers()]
        if self.optimizer is not None:
            for parameter in self.model.parameters():
                if parameter.requires_grad:  # held throughout, so that the peak is that of activations
                    parameter.grad = torch.zeros_like(parameter)
                    held.append(parameter.grad)
            held += [x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
        activations = peak_of(self.run, device)
        return None if activations is None else _bytes(held) + activations, activations


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def timed_step(
    name: str,
    model: nn.Module,
    batch_size: int,
    size: int | tuple[int, int] | None,
    training: bool,
    precision: Precision,
    compile: Compile,
    device: torch.device,
    seed: int,
) -> TimedStep:
    """One batch through a copy of the model."""
    dtype = DTYPES[precision]
    clone = fit_to_size(copy.deepcopy(model).train(training), size)
    clone.zero_grad(set_to_none=True)
    clone.to(device=device, dtype=torch.float32 if training else dtype)
    batch = example_input(clone, size, batch_size=batch_size, seed=seed)
    if not training:
        return TimedStep(_inference_step(compiled(clone, compile), batch), clone)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=precision != "float32"):
        output = _scores(batch.run(clone))
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"models[{name!r}] gives {shape}; a training step needs one row of classes for each image")
    if not any(p.requires_grad for p in clone.parameters()):
        raise ValueError(f"models[{name!r}] has no parameter that requires a gradient: there is nothing to train")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(output.shape[1], (batch_size,), generator=generator).to(device)
    optimizer = _adamw([p for p in clone.parameters() if p.requires_grad])
    run = _training_step(compiled(clone, compile), batch, labels, optimizer, precision)
    return TimedStep(run, clone, optimizer)


def _scores(output: Any) -> Any:
    """The rows of classes in what a model gives; transformers has them among others."""
    return getattr(output, "logits", output)


def _inference_step(model: nn.Module, batch: Example) -> Callable[[], None]:
    def step() -> None:
        with torch.inference_mode():
            batch.run(model)

    return step


def _training_step(
    model: nn.Module, batch: Example, labels: Tensor, optimizer: torch.optim.Optimizer, precision: Precision
) -> Callable[[], None]:
    scaler = torch.amp.GradScaler(labels.device.type, enabled=precision == "fp16")

    def step() -> None:
        with torch.autocast(labels.device.type, DTYPES[precision], enabled=precision != "float32"):
            loss = F.cross_entropy(_scores(batch.run(model)), labels)
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
