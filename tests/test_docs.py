"""What the README and the pages in docs/ show must run and parse."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from patchmerger.commands import build_parser

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


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


CONSOLE = [block for page in PAGES for block in blocks(page, "console")]


def name(value: Path | Block) -> str:
    return f"{value.page.name}:{value.line}" if isinstance(value, Block) else value.name


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks(page, "python"):
            padded = "\n" * (block.line - 1) + block.text  # a traceback then names the page's own line
            exec(compile(padded, str(page), "exec"), namespace)


@pytest.mark.parametrize("block", CONSOLE, ids=name)
def test_commands_parse(block, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the paths of configs begin
    monkeypatch.setattr("sys.exit", refuse_exit)
    found = [(words, part) for words in commands(block) for part in [program(words)] if part]
    assert found, "a console block without a command that can be checked"
    for words, part in found:
        arguments = words[words.index(part) + 1 :]
        if part == "make":
            assert TARGETS >= {word for word in arguments if "=" not in word}, " ".join(words)
        else:
            arguments = [word for word in arguments if word != "--print_config" and word != "mine.yaml"]
            build_parser().parse_args([word for word in arguments if word != "--config" or "mine.yaml" not in words])
