"""What an unlucky user types: one message, status 2, no traceback."""

import sys
from pathlib import Path

import pytest

from microtome.cli import main
from tests import toys


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("model") / "toy")


def _refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["microtome", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("text", "why"),
    [("x" * 300, "File name too long"), ("loop", "no such file"), ("", "names nothing"), ("a\0b", "names nothing")],
)
def test_texts_that_are_no_paths(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert why in _refused(monkeypatch, capsys, "build", checkpoint, text, "-o", "atlas")
    assert not Path("atlas").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_that_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: int
) -> None:
    assert "--port" in _refused(monkeypatch, capsys, "open", tmp_path, f"--port={port}")


def test_a_device_without_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "models are not run on it" in _refused(monkeypatch, capsys, "doctor", checkpoint, "--device", "meta")


def test_an_interruption_says_how_to_continue(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("microtome.atlas.build", interrupted)
    monkeypatch.setattr(sys, "argv", ["microtome", "build", str(checkpoint), "-o", str(tmp_path / "atlas")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert "Run the same command again" in capsys.readouterr().err
