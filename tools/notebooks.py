"""Run the notebooks in docs/notebooks/ and keep their outputs: ``python -m tools.notebooks``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path("docs/notebooks")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run(path: Path, folder: Path) -> Any:
    """Run a notebook in ``folder``, from its first cell to its last, and return it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell fails.
    """
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )  # fmt: skip
    client.execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" not in cell:
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # warnings name paths
        for output in cell.outputs:
            for text in (output, output.get("data", {})):
                for key in ("text", "text/plain"):
                    if key in text:
                        text[key] = _COLOURS.sub("", text[key])
    notebook.metadata.pop("language_info", None)
    return notebook


def main(arguments: Sequence[str]) -> None:
    """Run notebooks in place.

    Args:
        arguments: The notebooks; by default all of the documentation.
    """
    for path in map(Path, arguments) if arguments else sorted(NOTEBOOKS.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
        nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
