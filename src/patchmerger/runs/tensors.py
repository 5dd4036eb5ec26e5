"""Tensors on disk: one safetensors file, written atomically, readable by whoever the umask lets read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchmerger.runs.files import atomic_file


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, from any device.

    Raises:
        OSError: Too little space, or no right to write there; the file that was there is still there.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it; save_file makes files that only their owner can read
        try:
            save_file(stored, partial, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error
        partial.chmod(mode)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU, each in the dtype that it was saved in.

    Raises:
        ValueError: It is damaged, or no safetensors file.
    """
    try:
        # Copies: the file's own are where it has them, not where kernels are fast and round alike, and change with it.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or not a safetensors file ({error}); copy it again") from error
