"""The checkout as data: its files, its modules as syntax trees. For the tests that judge the source itself."""

import ast
import functools
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "microtome"
IMPORTABLE = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
"""PYTHONPATH of processes that are to have this checkout's package, whichever is installed, and the tests."""
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_BUILT = {
    ".git",
    ".venv",
    ".cache",
    "build",
    "dist",
    "node_modules",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}


@functools.cache
def files() -> tuple[Path, ...]:
    """Every file of the project: what git tracks or would track; all but what is built, where this is no git checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0 and listing.stdout:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        found = []
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in _BUILT and not name.endswith(".egg-info")]
            found += [Path(folder) / name for name in names]
    return tuple(sorted(path for path in found if path.is_file()))


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The package's modules by their path inside it (`core/sites.py`), parsed."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def source(module: str) -> list[str]:
    """The lines of a module."""
    return (PACKAGE / module).read_text(encoding="utf-8").splitlines()


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of the lines that docstrings, and strings that stand alone, take up."""
    return {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
