"""The shape of the package: which way imports go, what stays light, what things are called."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kft"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
ORDER = (
    ("errors", "progress"),
    ("registry", "recipe", "fetch"),
    ("backend", "rundir"),
    ("data",),
    ("backbones", "tasks", "metrics", "tuning", "exporters"),
    ("check", "pipeline", "api", "selection", "comparison"),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
FRAMEWORKS = {"keras", "keras_hub", "tensorflow", "tensorflow_text", "torch", "jax"}
WITHOUT_FRAMEWORKS = {"__init__", "__main__", "cli", "recipe", "registry", "errors", "rundir", "data"}
FORBIDDEN_NAMES = {"utils", "util", "common", "core", "helpers", "helper", "manager"}
PRIVATE_OR_OLD = ("keras.src", "tensorflow.keras", "tf.keras", "tf_keras")

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


class Import(NamedTuple):
    """An imported name, dotted, and whether the import waits inside a function or is for types only."""

    name: str
    line: int
    deferred: bool


def _module(path: Path) -> list[str]:
    parts = ["kft", *path.relative_to(PACKAGE).with_suffix("").parts]
    return parts


def _part(path: Path) -> str:
    return _module(path)[1]


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _names(node: ast.Import | ast.ImportFrom, module: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = ".".join(module[: -node.level]) if node.level else ""
    origin = ".".join(part for part in (base, node.module) if part)
    return [f"{origin}.{alias.name}" for alias in node.names]


def imports(tree: ast.AST, module: list[str], deferred: bool = False) -> Iterator[Import]:
    """Yields every import of a module, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(name, node.lineno, deferred) for name in _names(node, module))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types(node)
        yield from imports(node, module, deferred or inside)


def _imports_of(path: Path) -> list[Import]:
    return list(imports(ast.parse(path.read_text(encoding="utf8")), _module(path)))


def _parts_imported(path: Path) -> Iterator[tuple[str, int]]:
    for found in _imports_of(path):
        root, _, rest = found.name.partition(".")
        part = rest.partition(".")[0]
        if root == "kft" and part and (part in RANK or (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()):
            yield part, found.line


def test_the_walk_sees_the_package() -> None:
    assert {"errors", "registry", "recipe", "data", "metrics", "cli", "__init__"} <= {_part(path) for path in FILES}


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    code = """
import keras
from . import recipe
from ..errors import KftError
if TYPE_CHECKING:
    import torch
class A:
    import jax
    def f(self):
        import tensorflow as tf
"""
    found = [(name, deferred) for name, _, deferred in imports(ast.parse(code), ["kft", "data", "table"])]
    assert found == [
        ("keras", False),
        ("kft.data.recipe", False),
        ("kft.errors.KftError", False),
        ("torch", True),
        ("jax", False),
        ("tensorflow", True),
    ]


@each_file
def test_imports_go_one_way(path: Path) -> None:
    part = _part(path)
    if part in ("__init__", "__main__"):
        return
    assert part in RANK, f"kft.{part} has no place in the order; give it one in ORDER and in the README's Layout"
    wrong = [
        f"line {line}: kft.{part} imports kft.{other}"
        for other, line in _parts_imported(path)
        if RANK.get(other, len(ORDER)) > RANK[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_one_another_in_a_circle() -> None:
    modules = {".".join(_module(path)).removesuffix(".__init__"): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        wanted = {part for found in _imports_of(path) for part in (found.name, found.name.rpartition(".")[0])}
        if path != PACKAGE / "__init__.py":
            graph[name] = (wanted & set(modules)) - {name, "kft"}
    # `from kft.tasks import text` inside the package itself asks for the module, not for what __init__ holds
    for name, wanted in graph.items():
        graph[name] = {other for other in wanted if not name.startswith(f"{other}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " → ".join(error.args[1]))


@each_file
def test_frameworks_are_imported_at_the_top_of_leaf_modules_only(path: Path) -> None:
    if _part(path) not in WITHOUT_FRAMEWORKS and path.stem != "__init__":
        return
    found = [found for found in _imports_of(path) if found.name.partition(".")[0] in FRAMEWORKS and not found.deferred]
    assert not found


@each_file
def test_no_private_and_no_old_keras(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf8"))
    used = [found.name for found in _imports_of(path)]
    used += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert not [name for name in used if f"{name}.".startswith(tuple(f"{bad}." for bad in PRIVATE_OR_OLD))]


@each_file
def test_a_module_is_called_after_what_it_holds(path: Path) -> None:
    words = {word for name in _module(path) for word in name.split("_")}
    assert not words & FORBIDDEN_NAMES


@each_file
def test_public_functions_and_classes_say_what_they_do(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf8"))
    silent = [
        f"line {node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)


def test_help_loads_no_framework() -> None:
    code = """
import json, sys
sys.argv = ["kft", "--help"]
from kft.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Usage:" in run.stdout and "run" in run.stdout
    loaded = set(json.loads(run.stderr.splitlines()[-1]))
    assert not loaded & (FRAMEWORKS | {"transformers", "datasets", "tensorflow_datasets", "sklearn", "scipy"})


def test_importing_kft_loads_no_framework() -> None:
    code = "import json, sys, kft; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(run.stdout)) & FRAMEWORKS
