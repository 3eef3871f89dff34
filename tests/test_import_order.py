"""Who may know whom: the order of crates, Rust modules and Python modules, and what an import loads."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "grass_rs"
RUST = ROOT / "rust"

PYTHON_ORDER = [
    {"errors", "_native"},
    {"types"},
    {"_backends"},
    {"compress", "capture", "store", "report"},
    {"evaluate"},
    {"engine"},
    {"cli"},
    {"__main__"},
]
"""Each imports only what is in an earlier set; the names of one set never import each other."""

CRATE_ORDER = [{"grass-core"}, {"grass-store"}, {"grass-engine"}, {"grass-py"}]

CORE_ORDER = [
    {"error"},
    {"processors", "progress", "simd", "workspace"},
    {"convert", "dot", "dtype", "gram", "panels", "philox", "parallel"},
    {"project", "signs", "spec"},
    {"mask", "sjlt", "gaussian"},
    {"grass", "logra", "factgrass", "tile"},
    {"compressor"},
]

TORCH_AT_IMPORT = {
    "_backends/pure_torch",
    "_backends/torch_device",
    "_backends/torch_ops",
    "capture",
    "evaluate/benchmark",
    "evaluate/ensemble",
    "evaluate/interventions",
    "evaluate/training",
    "engine",
    "cli",
}
"""Modules and folders that nothing loads unless they are used: torch may be imported at their top."""


def rank(name: str, order: list[set[str]]) -> int:
    found = [place for place, names in enumerate(order) if name in names]
    assert found, f"{name} has no place in the import order: give it one in {__name__}"
    return found[0]


def violations(edges: list[tuple[str, str]], order: list[set[str]]) -> list[str]:
    """Return every edge (importer, imported) that does not go to an earlier set."""
    return [
        f"{importer} imports {imported}"
        for importer, imported in sorted(set(edges))
        if importer != imported and rank(imported, order) >= rank(importer, order)
    ]


# Python


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """Return the module or folder of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the absolute name of every module, or name in a module, that a file imports."""
    package = ("grass_rs", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def python_edges() -> list[tuple[str, str]]:
    edges = []
    for path in python_files():
        if path == PACKAGE / "__init__.py":
            continue
        names = imported_modules(ast.parse(path.read_text(encoding="utf-8")), path)
        inside = [name.split(".") for name in names if name.split(".")[0] == "grass_rs"]
        edges += [(part(path), name[1] if len(name) > 1 else "grass_rs") for name in inside]
    return edges


def test_python_modules_are_seen() -> None:
    parts = {part(path) for path in python_files()} - {"__init__"}
    # The native module is compiled.
    assert parts == set().union(*PYTHON_ORDER) - {"_native"}


def test_python_imports_go_to_the_left() -> None:
    edges = python_edges()
    # The check sees what is certainly there.
    assert ("types", "errors") in edges
    assert ("compress", "_native") in edges
    assert ("engine", "store") in edges
    assert any(importer == "cli" for importer, _ in edges)
    assert violations(edges, PYTHON_ORDER) == []


def test_a_violation_would_be_found() -> None:
    assert violations([("types", "engine")], PYTHON_ORDER) == ["types imports engine"]
    assert violations([("store", "capture")], PYTHON_ORDER) == ["store imports capture"]
    assert violations([("engine", "types")], PYTHON_ORDER) == []


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, those for type checkers left out."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [
                child
                for child in ast.walk(node)
                if isinstance(child, ast.stmt) and child is not node
            ]


def test_torch_is_imported_at_the_top_only_where_it_may() -> None:
    importers = set()
    for path in python_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = ast.Module(
            body=[
                node for node in module_level(tree) if isinstance(node, ast.Import | ast.ImportFrom)
            ],
            type_ignores=[],
        )
        if any(name.split(".")[0] in {"torch", "cupy"} for name in imported_modules(top, path)):
            importers.add(path.relative_to(PACKAGE).with_suffix(""))
    allowed = {
        importer: place
        for importer in importers
        for place in TORCH_AT_IMPORT
        if importer.is_relative_to(place)
    }
    assert importers == set(allowed)
    # The check sees what is certainly there.
    assert {"capture", "_backends/pure_torch", "_backends/torch_ops"} <= set(allowed.values())


LOADED = """
import sys
import grass_rs
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
OPTIONAL = {
    "torch",
    "cupy",
    "scipy",
    "tqdm",
    "argparse",
    "sklearn",
    "pandas",
    "transformers",
    "ray",
}


def test_import_loads_nothing_optional(run_script: Callable[..., str]) -> None:
    loaded = set(run_script(LOADED).split())
    assert {"grass_rs", "numpy"} <= loaded
    assert loaded & OPTIONAL == set()


USED = """
import sys
import numpy as np
import grass_rs as grass
grass.SJLT(8, 4, seed=0)(np.ones((2, 8)))
grass.FactGraSS(8, 4, 4, seed=0)(np.ones((2, 8)), np.ones((2, 4)))
grass.create_store, grass.open_store, grass.lds, grass.Scores
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_compressing_numpy_arrays_loads_nothing_optional(run_script: Callable[..., str]) -> None:
    loaded = set(run_script(USED).split())
    assert "grass_rs" in loaded
    assert loaded & (OPTIONAL - {"tqdm"}) == set()


# Rust


def crate_edges() -> list[tuple[str, str]]:
    edges = []
    for manifest in sorted(RUST.glob("*/Cargo.toml")):
        data = tomllib.loads(manifest.read_text(encoding="utf-8"))
        tables = [
            data.get(key, {}) for key in ("dependencies", "dev-dependencies", "build-dependencies")
        ]
        edges += [
            (data["package"]["name"], name)
            for table in tables
            for name in table
            if name.startswith("grass-")
        ]
    return edges


def test_crates_go_to_the_left() -> None:
    edges = crate_edges()
    assert {path.parent.name for path in RUST.glob("*/Cargo.toml")} == set().union(*CRATE_ORDER)
    assert {("grass-py", "grass-core"), ("grass-py", "grass-engine")} <= set(edges)
    assert violations(edges, CRATE_ORDER) == []


def rust_edges(crate: str) -> list[tuple[str, str]]:
    """Return (module, module) for every `crate::module` that a file names."""
    edges = []
    for path in sorted((RUST / crate / "src").rglob("*.rs")):
        module = path.relative_to(RUST / crate / "src").parts[0].removesuffix(".rs")
        if module == "lib":
            continue
        text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
        named = re.findall(r"\b(?:crate|super)::(\w+)", text)
        for group in re.findall(r"\bcrate::\{([^;]*)\}", text):
            named += re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\{[^{}]*\}", "", group))
        modules = {other.stem for other in (RUST / crate / "src").iterdir()}
        edges += [(module, name) for name in named if name in modules]
    return edges


@pytest.mark.parametrize(("crate", "order"), [("grass-core", CORE_ORDER)])
def test_rust_modules_go_to_the_left(crate: str, order: list[set[str]]) -> None:
    edges = rust_edges(crate)
    files = {path.stem for path in (RUST / crate / "src").iterdir()} - {"lib"}
    assert {"philox", "mask", "sjlt", "gaussian", "grass", "logra", "factgrass", "tile"} <= files
    assert ("sjlt", "philox") in edges
    assert ("grass", "sjlt") in edges
    assert violations([*edges, *((file, file) for file in files)], order) == []


@pytest.mark.parametrize("crate", ["grass-core", "grass-store", "grass-engine"])
def test_pure_crates_know_no_python(crate: str) -> None:
    sources = sorted((RUST / crate).rglob("*.rs"))
    assert len(sources) > 3
    assert all("pyo3" not in path.read_text(encoding="utf-8") for path in sources)
    assert "pyo3" not in (RUST / crate / "Cargo.toml").read_text(encoding="utf-8")
