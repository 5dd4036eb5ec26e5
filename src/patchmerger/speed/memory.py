"""Memory of a step: how much it needs, and what to do when there is not enough."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def peak_of(step: Callable[[], None], device: torch.device) -> int | None:
    """Bytes that ``step`` needs at most, beyond those held when it begins; ``None`` where a device does not tell.

    On a GPU from the statistics of torch's allocator, on a CPU from the allocations that torch's profiler lists
    (buffers inside the kernels of other libraries are not among them).
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    if device.type != "cpu":
        step()
        return None
    with _silent(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profiler:
        step()
    events = profiler.kineto_results.events() if profiler.kineto_results is not None else []
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _silent() -> Iterator[None]:
    """Without the lines that the profiler's own library writes to standard error."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nothing)
        os.close(kept)


@contextmanager
def limited_to_free_memory(device: torch.device) -> Iterator[None]:
    """Make an allocation on the CPU that does not fit fail, where Linux would kill the process some time later."""
    free = _free_bytes() if device.type == "cpu" else None
    if free is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = held + free
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error)
        for words in ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "out of memory")
    )


def out_of_memory_text(error: BaseException) -> str:
    """Say it with no more than how much was asked for."""
    asked = re.search(r"tried to allocate ([\d.]+) (\w+)", str(error), flags=re.IGNORECASE)
    if asked is None:
        return "out of memory: a smaller batch_size or image_size may do"
    size = f"{int(asked[1]) / 2**30:,.1f} GiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    return f"out of memory (a single tensor of {size} found no place): a smaller batch_size or image_size may do"


def release(device: torch.device) -> None:
    """Give back what an abandoned step left in memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _free_bytes() -> int | None:
    """Bytes that this process may still take on Linux, a container's limit included; ``None`` elsewhere."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return max(0, free)
