"""What is in the repository: nothing large, nothing that only one machine has, no download addresses in locks."""

import ast
import os
import re
import stat
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tree import ROOT, files, modules

LARGEST = 2_000_000
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
HOMES = re.compile(r"(?<![\w.])/(?:home|Users)/[a-z]\w*/|(?<![\w.])/(?:root)/\w|[A-Z]:\\\\?Users\\")
ADDRESS = re.compile(r"https?://|file://|--(?:extra-)?index-url|--find-links|--trusted-host|@ \w+:")

BROUGHT = {
    "PIL": "matplotlib",
    "huggingface_hub": "transformers",
    "sklearn": "scikit-learn",
    "starlette": "fastapi",
    "traitlets": "anywidget",
}
"""Import names that a declared dependency of another name brings along."""
UNDECLARED = {"onnx": "cli/onnx.py, for one packaged model of the tests; refuses with the command that installs it"}


def texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project with what it says."""
    for path in files():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_file_is_large() -> None:
    assert {str(path.relative_to(ROOT)): path.stat().st_size for path in files() if path.stat().st_size > LARGEST} == {}


def test_no_path_of_one_machine() -> None:
    here = {str(ROOT), str(Path.home())} - {"/"}
    found = [
        f"{path.relative_to(ROOT)}: {match}"
        for path, text in texts()
        for match in [*(name for name in here if f"{name}/" in text), *HOMES.findall(text)]
    ]
    assert found == []


@pytest.mark.parametrize("text", ["/" + "home/ada/models", "see /" + "Users/ada/x", "C:" + r"\Users\ada"])
def test_a_path_of_one_machine_is_noticed(text: str) -> None:
    assert HOMES.search(text)


def test_locks_pin_and_hash_without_addresses() -> None:
    assert {path.name for path in LOCKS} >= {"run.txt", "dev.txt", "docs.txt"}
    for path in LOCKS:
        text = path.read_text(encoding="utf-8")
        assert not ADDRESS.search(text), path.name
        if path.name == "apart.txt":
            continue
        entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip(), flags=re.IGNORECASE)
        assert all(re.match(r"[\w.-]+==\S+", entry) and "--hash=sha256:" in entry for entry in entries), path.name


def test_locks_agree() -> None:
    """What is installed to run microtome is installed, in the same version, to test and to document it."""
    run, dev, docs = (
        set(re.findall(r"^[\w.-]+==[^ ;]+", (ROOT / "requirements" / name).read_text(encoding="utf-8"), flags=re.MULTILINE))
        for name in ("run.txt", "dev.txt", "docs.txt")
    )
    assert run <= dev
    assert run <= docs


def test_torch_is_installed_apart() -> None:
    for path in LOCKS:
        if path.name != "apart.txt":
            assert not re.search(r"^(torch|nvidia-[\w-]+|triton)==", path.read_text(encoding="utf-8"), flags=re.MULTILINE), (
                path.name
            )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
@pytest.mark.parametrize("name", [".ci/run", "requirements/install.sh", "requirements/lock.sh"])
def test_scripts_can_be_run(name: str) -> None:
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR


def test_imports_are_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    declared = {re.match(r"[\w-]+", requirement).group().lower() for requirement in wanted}  # pyright: ignore[reportOptionalMemberAccess]
    imported: dict[str, str] = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0]: module for name in names}
    foreign = {name: module for name, module in imported.items() if name not in sys.stdlib_module_names | {"microtome"}}
    assert {n: m for n, m in foreign.items() if BROUGHT.get(n, n).lower() not in declared and n not in UNDECLARED} == {}
    assert set(UNDECLARED) <= set(foreign), "no longer imported: remove it"
