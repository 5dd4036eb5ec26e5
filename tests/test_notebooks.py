"""The notebooks of the documentation run from their first cell to their last, and are kept small, with outputs."""

import re
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_small_and_have_their_outputs(path):
    assert path.stat().st_size < 500_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert len(outputs) >= 3
    assert all(output.output_type != "error" for output in outputs)
    assert not re.search(r"/(root|home|work|tmp)/", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_is_a_page_of_the_site(path):
    pytest.importorskip("mkdocs")
    from tools.site.notebook_pages import notebook_page

    page, pictures = notebook_page(path)
    cells = nbformat.read(path, as_version=4).cells
    assert page.startswith("# ")
    assert page.count("```python\n") == sum(cell.cell_type == "code" for cell in cells)
    assert all(f"]({name})" in page and content.startswith(b"\x89PNG") for name, content in pictures.items())
    printed = [o.text.strip() for cell in cells if cell.cell_type == "code" for o in cell.outputs if "text" in o]
    assert all(text in page for text in printed)


@pytest.mark.slow
@pytest.mark.timeout(900)  # some minutes where other tests run beside it
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    from tools.notebooks import run

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.copy(path, tmp_path / path.name)
    assert run(tmp_path / path.name, tmp_path).cells
