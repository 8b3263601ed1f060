"""The surface: what `microtome` offers is what docs/api.md documents, and importing it costs nothing."""

import json
import re
import subprocess
import sys

import pytest

import microtome
from tests.tree import ROOT

HEAVY = {
    "torch",
    "transformers",
    "matplotlib",
    "fastapi",
    "ray",
    "numba",
    "sklearn",
    "scipy",
    "duckdb",
    "pyarrow",
    "datasets",
    "anywidget",
}
OPTIONAL = {"matplotlib", "ray", "datasets", "anywidget", "openTSNE", "s3fs"}
"""What no import of a public name may load: extras, and what only drawing a figure needs."""


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`; a socket opened on the way is an error."""
    guard = (
        "import sys, json\n"
        "def audit(event, arguments):\n"
        "    if event.startswith('socket.') and event != 'socket.gethostname':\n"
        "        raise SystemExit(f'{event}{arguments}')\n"
        "sys.addaudithook(audit)\n"
    )
    tail = "\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", guard + code + tail], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def documented() -> set[str]:
    """Names with a heading of their own in docs/api.md."""
    return set(re.findall(r"^### `mt\.(\w+)", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE))


def test_importing_microtome_loads_nothing_heavy() -> None:
    assert loaded_by("import microtome") & HEAVY == set()


def test_the_command_line_starts_without_what_a_verb_needs() -> None:
    assert loaded_by("import microtome.cli.main, microtome.cli.verbs") & (HEAVY - {"torch"}) == set()


def test_using_public_names_loads_no_extra() -> None:
    assert loaded_by("import microtome as mt\nfor name in mt.__all__: getattr(mt, name)") & OPTIONAL == set()


def test_every_public_name_is_documented_and_no_other() -> None:
    assert set(microtome.__all__) == documented()


@pytest.mark.parametrize("name", microtome.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    assert (getattr(microtome, name).__doc__ or "").strip()
    assert name in dir(microtome)


def test_the_surface_stays_small() -> None:
    assert len(microtome.__all__) <= 22


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"no public name 'lod'.*load"):
        _ = microtome.lod  # pyright: ignore[reportAttributeAccessIssue]
