"""torch's own files: a ``torch.export`` program, and the same compiled by AOTInductor for machines like this one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from patchmerger.exports.metadata import ExportInfo
from patchmerger.exports.runtimes import INFO_NAME
from patchmerger.exports.tracing import ImageClassifier, refused_by_operation
from patchmerger.runs.silence import silent_libraries


def write_program(program: ExportedProgram, path: Path, info: ExportInfo) -> None:
    """Write the program, with what it says of itself among its extra files."""
    description = json.dumps(info.as_properties(), ensure_ascii=False)
    whole = io.BytesIO()  # torch aborts the process where it finds the disk full
    with silent_libraries():
        torch.export.save(program, whole, extra_files={INFO_NAME: description})
    path.write_bytes(whole.getbuffer())


def write_package(program: ExportedProgram, model: ImageClassifier, path: Path, info: ExportInfo) -> None:
    """Compile the program for this machine and write the package.

    Raises:
        ValueError: It cannot be compiled: there is no compiler of C++, say.
    """
    from torch._inductor import aoti_compile_and_package

    metadata = {"patchmerger": json.dumps(info.as_properties())}
    with refused_by_operation(model, "compiled by AOTInductor"), torch.no_grad():
        aoti_compile_and_package(program, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata})
