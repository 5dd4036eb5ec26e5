"""Hooks of MkDocs: results and notebooks are part of the site, and links to the source code become its path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tools.site.notebook_pages import notebook_page

ROOT = Path(__file__).parents[2]
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./((?!results/)[^)\s]+)\)")

_NOTEBOOK = re.compile(r"\]\(([\w/-]+)\.ipynb\)")


def on_files(files: Files, config: Any) -> Files:
    """Add results/: its pictures, and the page that explains them; and in place of each notebook a page."""
    for path in sorted([*(ROOT / "results").glob("*.png"), ROOT / "results" / "README.md"]):
        files.append(
            File(path.relative_to(ROOT).as_posix(), str(ROOT), config["site_dir"], config["use_directory_urls"])
        )
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        uri = notebook.relative_to(ROOT / "docs")
        files.remove(files.src_uris[uri.as_posix()])
        markdown, pictures = notebook_page(notebook)
        files.append(File.generated(config, uri.with_suffix(".md").as_posix(), content=markdown))
        for name, content in pictures.items():
            files.append(File.generated(config, uri.with_name(name).as_posix(), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave docs/: those to results/ lead to the site's copy; what else there is becomes its path."""
    if page.file.src_uri.startswith("results/"):
        return re.sub(r"\[([^\]]*)\]\((?:\.\./(?!docs/)[^)\s]*|[^)\s/]+\.json)\)", r"\1", markdown).replace(
            "](../docs/", "](../"
        )
    markdown = _NOTEBOOK.sub(r"](\1.md)", markdown)
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
    markdown = markdown.replace("](../results/", "](results/").replace('src="../results/', 'src="results/')
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
