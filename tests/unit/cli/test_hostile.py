"""What an unlucky user types: one message, status 2, no traceback."""

import os
import sys
from pathlib import Path

import pytest

from microtome.atlas import build
from microtome.atlas.folder import claimed
from microtome.cli import main
from tests import toys
from tests.unit.cli.forks import Forks


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
    assert "--port" in _refused(monkeypatch, capsys, "demo", "-o", tmp_path / "atlas", f"--port={port}")
    assert not (tmp_path / "atlas").exists()


@pytest.mark.parametrize("dry_run", [("--dry-run",), ()])
def test_folders_of_others_are_refused_before_the_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dry_run: tuple[str, ...]
) -> None:
    (tmp_path / "diary.txt").touch()
    assert "holds files but no atlas.json" in _refused(
        monkeypatch, capsys, "build", "./none", "sample", "-o", tmp_path, *dry_run
    )
    if not dry_run:
        assert "holds files but no atlas.json" in _refused(monkeypatch, capsys, "demo", "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_dry_runs_name_another_models_atlas_and_a_run_of_another_text(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(" ".join(toys.toy_texts()))
    other.write_text(" ".join(toys.toy_texts()[1:]))
    output = build(toys.toy_decoder(), text, output=tmp_path / "atlas").path
    said = _refused(monkeypatch, capsys, "build", checkpoint, text, "-o", output, "--dry-run")
    assert "it is the atlas of toy-llama, whose weights are not those of toy" in said
    output = build(checkpoint, text, output=tmp_path / "second").path
    assert "its text was another one" in _refused(monkeypatch, capsys, "build", checkpoint, other, "-o", output, "--dry-run")


@pytest.mark.parametrize("contents", ['{"schema_version": 2}', '{"schema_version": "x"}', "", "[" * 100_000])
def test_every_verb_refuses_an_atlas_that_is_newer_or_damaged(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], contents: str
) -> None:
    manifest = tmp_path / "atlas.json"
    manifest.write_text(contents)
    why = "upgrade microtome" if "2" in contents else "it is damaged, or not the manifest of a microtome atlas"
    verbs = (
        ("sql", tmp_path, "select 1"),
        ("open", tmp_path, "--port=0"),
        ("export", tmp_path, "-o", tmp_path / "site"),
        ("build", checkpoint, "-o", tmp_path),
        ("build", checkpoint, "sample", "-o", tmp_path, "--dry-run"),
    )
    for verb in verbs:
        assert why in _refused(monkeypatch, capsys, *verb), verb[0]
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.json"]
    assert manifest.read_text() == contents


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


def test_text_from_a_pipe_and_letters_that_a_terminal_lacks(forks: Forks, checkpoint: Path, tmp_path: Path) -> None:
    text, output = tmp_path / "text", tmp_path / "ätlas"
    text.write_text(" ".join(toys.toy_texts()))
    piped = forks.run("build", checkpoint, "-", "-o", output, "--window", 24, stdin=str(text))
    assert (piped.status, piped.err) == (0, "")
    said = forks.run("sql", output, "select name, 'ü' as letter from documents", encoding="ascii")
    assert said.out == b"name\tletter\nstdin\t\\xfc\n"
    for stdin, why in ((None, "standard input is closed"), (os.devnull, "none of its documents is usable: stdin (empty)")):
        refused = forks.run("build", checkpoint, "-", "-o", tmp_path / "none", stdin=stdin)
        assert refused.status == 2
        assert why in refused.err
    assert not (tmp_path / "none").exists()


def test_a_limit_on_the_size_of_files_is_named_and_lifted_the_build_goes_on(
    forks: Forks, checkpoint: Path, tmp_path: Path
) -> None:
    """As on a full disk: one message, nothing half-written, and the same command continues."""
    text, output, whole = tmp_path / "text.txt", tmp_path / "atlas", tmp_path / "whole"
    text.write_text("\n".join(toys.toy_texts(documents=40)))
    command = ("build", checkpoint, text, "--window", 24, "-o")
    for size, kept in ((1 << 10, False), (1 << 16, True)):
        stopped = forks.run(*command, output, file_size=size)
        assert stopped.status == 2
        lines = stopped.err.splitlines()
        assert [line.split()[0] for line in lines] == ["Refused:", "because", "instead"]
        assert "the size of a file in" in lines[1]
        assert output.exists() == kept
        assert list(tmp_path.rglob("*.part")) == []
    assert forks.run(*command, output).status == forks.run(*command, whole).status == 0
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    assert [(output / path).read_bytes() for path in files] == [(whole / path).read_bytes() for path in files]
    assert not (output / "work").exists()


def test_a_folder_in_which_another_process_builds_is_refused_and_left_alone(
    forks: Forks, checkpoint: Path, tmp_path: Path
) -> None:
    with claimed(tmp_path / "atlas", "main") as output:
        refused = forks.run("build", checkpoint, "sample", "-o", output)
        assert (refused.status, [path.name for path in output.iterdir()]) == (2, [".lock"])
        assert "another run is writing in it" in refused.err
    assert forks.run("build", checkpoint, "-o", output).status == 0
