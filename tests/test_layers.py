"""The layers of ARCHITECTURE.md hold, and the contracts that say so would notice if they did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import ROOT

CONTRACTS = {"layers", "cycles", "transformers", "ray", "fastapi", "matplotlib", "numba"}


def lint_imports(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the project's contracts on the `microtome` found at `path`."""
    command = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports_command as run; run(sys.argv[1:])"]
    return subprocess.run(
        [*command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", *arguments],
        cwd=path,
        env=os.environ | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "", "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_layers_hold() -> None:
    result = lint_imports(path=ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("contract", "files"),
    [
        pytest.param("layers", {"core/sites.py": "import microtome.cli", "cli/__init__.py": ""}, id="core imports cli"),
        pytest.param("layers", {"atlas/a.py": "", "report/b.py": "import microtome.atlas.a"}, id="neighbours in one layer"),
        pytest.param("layers", {"novelty/__init__.py": ""}, id="a package without a layer"),
        pytest.param(
            "layers",
            {"numerics/n.py": "def late():\n    import microtome.model.m", "model/m.py": ""},
            id="import inside a function",
        ),
        pytest.param("cycles", {"core/a.py": "import microtome.core.b", "core/b.py": "import microtome.core.a"}, id="cycle"),
        pytest.param(
            "transformers", {"corpus/c.py": "from transformers import AutoTokenizer"}, id="transformers outside model"
        ),
        pytest.param("ray", {"capture/c.py": "import ray.data"}, id="ray outside engine"),
        pytest.param("fastapi", {"atlas/a.py": "import fastapi"}, id="fastapi outside web"),
        pytest.param("matplotlib", {"web/w.py": "import matplotlib.pyplot as plt"}, id="matplotlib outside report"),
        pytest.param("numba", {"neurons/n.py": "import numba"}, id="numba outside numerics"),
    ],
)
def test_contracts_notice(contract: str, files: dict[str, str], tmp_path: Path) -> None:
    for name, text in {"__init__.py": "", "core/__init__.py": "", **files}.items():
        path = tmp_path / "microtome" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        (path.parent / "__init__.py").touch()
    assert lint_imports("--contract", contract, path=tmp_path).returncode == 1
    for other in CONTRACTS - {contract}:
        assert lint_imports("--contract", other, path=tmp_path).returncode == 0, other
