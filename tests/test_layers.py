"""The imports of the package flow one way, and in no circle."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import patchmerger

SOURCE = Path(patchmerger.__file__).parent

LAYERS = [
    {"runs"},
    {"prior", "merger", "presets", "mechanism"},
    {"hosts", "reducers", "insertion", "zoo", "diagnosis", "placing"},
    {"costs", "speed", "models", "data", "hub", "maps", "exports"},
    {"training", "fewshot", "prediction"},
    {"acceleration", "census"},
    {"patterns", "studies", "reports"},
    {"commands", "cli"},
    {"__main__"},
]
"""Packages and modules of the top level; each may import those of its own layer and of the ones before it."""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imported_by(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it, but for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    froms = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in for_types)
    imported = {defining_module(node.module, alias.name) for node in froms if node.module for alias in node.names}
    return (imported & MODULES.keys()) - {"patchmerger"}


@cache
def defining_module(module: str, name: str) -> str:
    """The module that a name is from, where a package hands it on."""
    stub = SOURCE.joinpath(*module.split(".")[1:], "__init__.pyi")
    if not module.startswith("patchmerger") or not stub.exists():
        return module
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.asname for alias in node.names}:
            return defining_module(f"{module}.{node.module}", name)
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


MODULES = {module_of(path): path for path in SOURCE.rglob("*.py")}


def test_every_module_is_in_a_layer():
    tops = {name.split(".")[1] for name in MODULES if "." in name}
    assert tops == set().union(*LAYERS)


def test_no_file_imports_upward():
    rank = {top: number for number, layer in enumerate(LAYERS) for top in layer}
    upward = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if "." in name
        for other in imported_by(path)
        if rank[other.split(".")[1]] > rank[name.split(".")[1]]
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({name: imported_by(path) - {name} for name, path in MODULES.items()}).prepare()


def test_no_packages_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if "." in name:
            top = name.split(".")[1]
            graph.setdefault(top, set()).update({other.split(".")[1] for other in imported_by(path)} - {top})
    TopologicalSorter(graph).prepare()


def test_settings_and_names_import_nothing_heavy():
    light = [name for name in MODULES if name.endswith((".settings", ".preprocessing", ".names", ".options"))]
    assert len(light) > 12
    heavy = {"torch", "timm", "lightning", "datasets", "sklearn", "numpy"}
    code = f"import sys, {', '.join(light)}; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
