"""What the README and the pages in docs/ show must run, parse, and lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from patchmerger.cli import read_command
from processes import run_program

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

NEEDED = {"huggingface-trainer.md": ("accelerate",), "lora.md": ("peft",), "export.md": ("onnx", "onnxruntime")}
"""Libraries that a page is about, which nothing else needs."""

SLOW = {"speed", "placing", "transfer", "export"}
"""Pages whose code takes some ten seconds, of things that further tests run."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    """The line of the page that its first line stands on."""
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text()
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, fence.start(1)) + 1, fence[1]) for fence in fences]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block: lines after a prompt, or all lines where there is no prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    parts = [part for line in prompted or lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def name(value: Path | Block) -> str:
    return f"{value.page.name}:{value.line}" if isinstance(value, Block) else value.name


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page.stem in SLOW else page
        for page in PAGES
        if blocks(page, "python")
    ],
    ids=name,
)
def test_python_blocks_run_in_a_process_of_their_own(page, tmp_path):
    for library in NEEDED.get(page.name, ()):
        pytest.importorskip(library, reason=f"the page is about {library}")
    lines = [""] * len(page.read_text().splitlines())  # so that a traceback names the page's own line
    for block in blocks(page, "python"):
        code = block.text.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code
    done = run_program("\n".join(lines), tmp_path, "page.py")
    assert done.code == 0, f"{page.name}\n{done.err}"


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "console")], ids=name)
def test_commands_parse(block, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # where the paths of configs begin
    for program, *arguments in commands(block):
        if program == "make":
            assert set(arguments) <= TARGETS, f"make {shlex.join(arguments)}: no such target"
        elif program == "patchmerger":
            assert_parses(arguments, capsys)


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), [PAGES[0]]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            todo += [(page.parent / target).resolve() for target in re.findall(r"\]\(([\w/.-]+\.md)", page.read_text())]
    assert reached >= set(PAGES)


def test_every_page_is_in_the_navigation_of_the_site():
    listed = re.findall(r"^ +- (?:[^:\n]+: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: no {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name}: no #{anchor} in {file.name}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_import_from_packages(page):
    deep = re.findall(r"^(?:from|import) patchmerger\.\w+\..*$", page.read_text(), flags=re.MULTILINE)
    assert not deep, f"{page.name} imports from a module inside of a package: {deep}"


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page, "yaml")], ids=name)
def test_configs_of_a_comparison_parse(block, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(block.text)
    assert_parses(["compare", "--config", str(config)], capsys)


def assert_parses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = arguments
    if name == "--help":
        return
    try:
        read_command(name, options)
    except SystemExit as stop:  # with 0 after --help and --print_config
        if stop.code != 0:
            pytest.fail(f"patchmerger {shlex.join(arguments)}\n{capsys.readouterr().err.splitlines()[-1]}")
