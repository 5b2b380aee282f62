"""The architecture's import rules, and the house rules that a machine can check."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("dlcc", "passes", "targets")
LARGEST_FILE = 600
LARGEST_FUNCTION = 80

FORBIDDEN = {
    "dlcc/ir": {"dlcc.ops", "dlcc.frontends", "dlcc.lowering", "dlcc.artifact", "dlcc.runtime"},
    "dlcc/program.py": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.artifact"},
    "dlcc/artifact": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.frontends"},
    "dlcc/runtime": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.frontends"},
    "dlcc/cycles": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.frontends", "dlcc.driver"},
    "dlcc/limits": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.frontends"},
    "dlcc/cuda": {"dlcc.ir", "dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.frontends"},
    "dlcc/remote": {"dlcc.ops", "dlcc.tir", "dlcc.lowering", "dlcc.frontends"},
    "dlcc/analysis": {"dlcc.tir", "dlcc.lowering", "dlcc.artifact", "dlcc.runtime"},
    "dlcc/lowering": {"dlcc.artifact", "dlcc.runtime", "dlcc.frontends"},
    "passes": {"targets", "dlcc.tir", "dlcc.artifact", "dlcc.runtime", "dlcc.driver", "dlcc.cli"},
    "targets": {"passes", "dlcc.artifact", "dlcc.runtime", "dlcc.driver", "dlcc.cli"},
}
"""Folder or file -> modules it must not import."""


@functools.cache
def sources() -> tuple[Path, ...]:
    return tuple(sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py")))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(node: ast.AST, package: str) -> Iterator[str]:
    """Every module that a syntax tree imports, and ``module.name`` for names imported from one.

    Imports for type checking only are left out: nothing is loaded for them.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parents = package.split(".")[: len(package.split(".")) - child.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in child.names)
        else:
            yield from imports(child, package)


def imported(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(imports(tree(path), package))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offenders(paths: Iterator[Path], packages: set[str]) -> list[str]:
    return [
        f"{name_of(path)} imports {module}"
        for path in paths
        for module in sorted(imported(path))
        if any(within(module, package) for package in packages)
    ]


def test_finds_imports() -> None:
    code = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\nif x:\n  import h\n"
    found = set(imports(ast.parse(code), "p.q"))
    assert {"a.b", "c.d", "p.q.e", "p.f.g", "h"} <= found
    hidden = "if TYPE_CHECKING:\n  import a\n"
    assert not set(imports(ast.parse(hidden), "p"))
    assert "dlcc.ir" in imported(ROOT / "dlcc" / "driver.py")


def test_only_dlcc_tir_imports_tvm() -> None:
    outside = (p for p in sources() if not name_of(p).startswith("dlcc/tir/"))
    assert offenders(outside, {"tvm", "tvm_ffi"}) == []


def test_dlcc_knows_passes_and_targets_only_in_driver_and_cli() -> None:
    allowed = ("dlcc/driver.py", "dlcc/cli/")
    core = (
        p
        for p in sources()
        if name_of(p).startswith("dlcc/") and not name_of(p).startswith(allowed)
    )
    assert offenders(core, {"passes", "targets"}) == []


@pytest.mark.parametrize("place", FORBIDDEN)
def test_layers(place: str) -> None:
    inside = [p for p in sources() if name_of(p) == place or name_of(p).startswith(place + "/")]
    assert inside, f"{place} is gone: mend this table"
    assert offenders(iter(inside), FORBIDDEN[place]) == []


def test_import_is_light() -> None:
    """``import dlcc`` loads neither TVM nor torch nor ONNX."""
    code = (
        "import sys, dlcc; heavy = {'tvm', 'torch', 'onnx', 'onnxruntime', 'numpy', 'passes'};"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_file_sizes() -> None:
    every = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    lengths = {name_of(p): len(p.read_text("utf-8").splitlines()) for p in every}
    assert {name: n for name, n in lengths.items() if n > LARGEST_FILE} == {}


def test_function_sizes() -> None:
    large = [
        f"{name_of(path)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > LARGEST_FUNCTION
    ]
    assert large == []


def test_docstrings() -> None:
    """Every module with code in it, and every public class and function, says what it is."""
    missing = []
    for path in sources():
        module = tree(path)
        if module.body and not ast.get_docstring(module):
            missing.append(name_of(path))
        for node in module.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                missing.append(f"{name_of(path)}: {node.name}")
    assert missing == []


def test_nothing_names_a_machine() -> None:
    """No file of the project holds an absolute path of the machine it was written on."""
    parts = [ROOT / name for name in (*PACKAGES, "tests", "examples", "docs", "benchmarks", ".ci")]
    files = [p for part in parts for p in part.rglob("*") if p.is_file()]
    files += [p for p in ROOT.iterdir() if p.suffix in (".md", ".toml") or p.name == "Makefile"]
    text = {".py", ".c", ".h", ".in", ".md", ".toml", ".dlir", ""}
    words = [f"/{folder}/" for folder in ("work", "root", "opt", "home")]
    found = [
        f"{name_of(p)}: {word}"
        for p in files
        if p.suffix in text and "__pycache__" not in p.parts
        for word in words
        if word in p.read_text("utf-8")
    ]
    assert found == []
