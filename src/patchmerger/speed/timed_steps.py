"""What is timed, a batch of inference or a training step, and how: interleaved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchmerger.hosts.example_inputs import Example, example_input, fit_to_size
from patchmerger.runs.progress import progress_bar
from patchmerger.speed.compiling import compiled
from patchmerger.speed.memory import peak_of
from patchmerger.speed.settings import Precision, TimingSettings

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ROUNDS_TO_KEEP = 3


@dataclass(frozen=True)
class TimedStep:
    """What is timed: one batch through a copy of a model, for training with an optimiser."""

    run: Callable[[], None]
    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None

    def __call__(self) -> None:
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
        if activations is None:
            return None, None
        return sum(x.numel() * x.element_size() for x in held) + activations, activations


def timed_step(
    name: str, model: nn.Module, settings: TimingSettings, size: tuple[int, int] | None, device: torch.device
) -> TimedStep:
    """One batch through a copy of the model."""
    dtype, training = DTYPES[settings.precision], settings.training
    clone = fit_to_size(copy.deepcopy(model).train(training), size)
    clone.zero_grad(set_to_none=True)
    clone.to(device=device, dtype=torch.float32 if training else dtype)
    whole = example_input(clone, size, batch_size=settings.batch_size, seed=settings.seed)
    if training and whole.text:
        raise ValueError(f"models[{name!r}] compares images with texts: its inference is measured, on images alone")
    batch, encoder = whole.images_alone(clone)
    if not training:
        return TimedStep(_inference_step(compiled(encoder, settings.compile), batch), clone)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=settings.precision != "float32"):
        output = _scores(batch.run(clone))
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"models[{name!r}] gives {shape}; a training step needs one row of classes for each image")
    if not any(p.requires_grad for p in clone.parameters()):
        raise ValueError(f"models[{name!r}] has no parameter that requires a gradient: there is nothing to train")
    generator = torch.Generator().manual_seed(settings.seed)
    labels = torch.randint(output.shape[1], (settings.batch_size,), generator=generator).to(device)
    optimizer = _adamw([p for p in clone.parameters() if p.requires_grad])
    run = _training_step(compiled(clone, settings.compile), batch, labels, optimizer, settings.precision)
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


def interleaved(
    names: Sequence[str],
    rounds: int,
    time_once: Callable[[str], T],
    progress: Callable[[int, int], None] | None = None,
    *,
    times: dict[str, list[T]] | None = None,
) -> tuple[dict[str, list[T]], bool]:
    """Time each of ``names`` once in every round, in an order that rotates: a slow moment of the machine slows all.

    ``progress`` is called after each round with the rounds done and the rounds in all; ``None`` shows a bar. What
    ``time_once`` gave comes back by name and round, and whether an interrupt (Ctrl-C) cut the rounds short; before
    three rounds were done it is raised. ``times`` are those of earlier rounds, which go on; each round is entered there
    when it is done.
    """
    times = {name: [] for name in names} if times is None else times
    with progress_bar("measuring", rounds, shown=progress is None) as bar:
        for done in range(len(times[names[0]]), rounds):
            first = done % len(names)
            try:
                timed = {name: time_once(name) for name in (*names[first:], *names[:first])}
            except KeyboardInterrupt:
                if done < _ROUNDS_TO_KEEP:
                    raise
                return times, True
            for name, seconds in timed.items():
                times[name].append(seconds)
            bar.advance()
            if progress is not None:
                progress(done + 1, rounds)
    return times, False
