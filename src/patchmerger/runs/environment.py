"""The machine: its devices, cores and arithmetic, and the record of them beside every measured number."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import timm
import torch


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Describe the machine, for the record beside every measured number: plain values of the device and of versions.

    ``load_average`` are the runnable processes in the last minute, this one included: above ``cpu_count``, the CPUs
    that this process may use, others competed for the CPU, and several threads suffer most. ``cpu_capability`` are the
    vector instructions that torch uses.
    """
    device = torch.device(device)
    return {
        "device": device.type,
        "device_name": device_name(device),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": usable_cores(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def versions_of(*libraries: str) -> dict[str, str | None]:
    """The versions of libraries; ``None`` for one that is not installed."""
    return {library: version(library) if find_spec(library) else None for library in libraries}


def device_name(device: torch.device | str) -> str:
    """The name of a device that a person would look up: the model of the GPU or of the CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_name() if device.type == "cpu" else device.type


def find_device(device: torch.device | str | None = None, *, may_be_meta: bool = False) -> torch.device:
    """The device to work on, checked to be there; by default the accelerator where there is one, else the CPU.

    ``may_be_meta`` is for where nothing needs to run.

    Raises:
        ValueError: The device is not there.
    """
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        found = torch.device(device)
        if found.type == "meta" and not may_be_meta:
            raise RuntimeError("nothing runs on the meta device")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        present = torch.accelerator.current_accelerator(check_available=True)
        names = "cpu" if present is None else f"cpu, {present.type}"
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(f"device ({str(device)!r}) is not there: {reason}; there is {names}") from error
    return found


def clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds, which first waits until the work that an accelerator was given is done."""
    if device.type == "cpu":
        return perf_counter

    def now() -> float:
        torch.accelerator.synchronize(device)
        return perf_counter()

    return now


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_has_bf16() -> bool:
    """Whether the CPU computes with bfloat16 (AVX512-BF16, AMX, or ARM's BF16), rather than emulating it slowly."""
    if hasattr(torch.cpu, "get_capabilities"):  # since torch 2.11
        known = torch.cpu.get_capabilities()
        return any(bool(known.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def default_precision(device: torch.device | str) -> Literal["bf16-mixed", "32-true"]:
    """bfloat16 autocast where the device computes with it, else float32; in Lightning's words."""
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if device.type == "cpu" and cpu_has_bf16() else "32-true"


def cpu_info(field: str) -> str:
    """What Linux says of the CPU under a name such as "flags"; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _cpu_name() -> str:
    return cpu_info("model name") or platform.processor() or platform.machine()


def default_workers(devices: int = 1) -> int:
    """Processes that load images for each of so many devices: none where at most two cores are at hand for it."""
    cores = usable_cores() // devices
    return 0 if cores <= 2 else min(8, cores - 1)


def start_method() -> str | None:
    """How processes that load images are started: forked where the system can, or as the user has set; None for that.

    By itself Python 3.14 starts the user's script once more in each of them, which fails in a script without ``if
    __name__ == "__main__":``, and sends them all images.
    """
    its_own, *_ = multiprocessing.get_all_start_methods()
    is_set = multiprocessing.get_start_method(allow_none=True) not in (None, its_own)
    return None if is_set or not sys.platform.startswith("linux") else "fork"
