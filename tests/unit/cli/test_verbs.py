"""The verbs, in process: what they print, what they refuse, with which status."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microtome.capture.recipes import subject_of
from microtome.cli.building import EngineOptions, ModelOptions
from microtome.cli.verbs import vocabulary
from microtome.cli.vocabulary import WAYS
from microtome.core import Refusal
from tests.unit.cli.calls import run as _run


@pytest.fixture(scope="module")
def atlas(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "atlas"
    with pytest.MonkeyPatch.context() as patch:
        assert _run(patch, "build", checkpoint, text, "-o", output, "--window", 24) == 0
    return output


def test_build_says_how_to_open_the_atlas(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "atlas"
    assert _run(monkeypatch, "build", checkpoint, text, "-o", output, "--window", 24) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{output} is ready: microtome open {output}\n"
    assert printed.err == "", "quiet where the output is not a terminal"


def test_sql_prints_tab_separated_rows(
    atlas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        _run(
            monkeypatch,
            "sql",
            atlas,
            "select layer, count(*) as n from units where basis = 'neurons' group by layer order by layer",
        )
        == 0
    )
    assert capsys.readouterr().out == "layer\tn\n0\t40\n1\t40\n2\t40\n"


def test_a_row_of_sql_is_a_line(atlas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    query = "select e'a\\tb\\nc\\rd\\\\' as x, null as y, 'ü' as \"z\tz\""
    assert _run(monkeypatch, "sql", atlas, query) == 0
    assert capsys.readouterr().out == "x\ty\tz\\tz\na\\tb\\nc\\rd\\\\\t\tü\n"


def test_a_bad_query_is_refused_with_the_reason(
    atlas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "sql", atlas, "select nothing from nowhere") == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "units" in error


def test_sites_lists_shapes_and_reasons(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(monkeypatch, "sites", checkpoint) == 0
    printed = capsys.readouterr().out
    assert "mlp_act" in printed
    assert "absent: " in printed


def test_doctor_prints_the_certificate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert _run(monkeypatch, "doctor", checkpoint) == 0
    printed = capsys.readouterr().out
    assert "passed" in printed
    assert "FAILED" not in printed


def test_dry_run_writes_nothing(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "atlas"
    assert _run(monkeypatch, "build", checkpoint, text, "-o", output, "--window", 24, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["text", "time", "work", "workers", "memory", "disk"]
    assert "12 documents" in printed
    assert list(tmp_path.iterdir()) == []


def test_clean_lists_and_removes_caches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MICROTOME_CACHE", str(tmp_path))
    assert _run(monkeypatch, "clean") == 0
    assert capsys.readouterr().out == "No caches.\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("build", "{missing}", "sample"), "no-such-model"),
        (("build", "{model}", "{missing}"), "no-such-model"),
        (("open", "{empty}"), "there is no atlas.json in it"),
        (("sql", "{empty}", "select 1"), "there is no atlas.json in it"),
        (("export", "{empty}"), "there is no atlas.json in it"),
    ],
)
def test_refusals_are_three_lines_and_status_2(
    arguments: tuple[str, ...],
    expected: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"missing": tmp_path / "no-such-model", "model": checkpoint, "empty": tmp_path / "empty"}
    assert _run(monkeypatch, *(argument.format(**places) for argument in arguments)) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line.split()[0] for line in lines] == ["Refused:", "because", "instead"]
    assert expected in printed.err
    assert printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_vocabulary_prints_vectors_heads_and_units(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--vector", "W_out.1/7", "--vector", "heads.2/3", "--vector", "neurons.1/7", "-k", 3, "--preset", "paper")
    assert _run(monkeypatch, "vocabulary", checkpoint, *asked) == 0
    printed = capsys.readouterr().out
    named = [line.split("  (")[0] for line in printed.splitlines() if "/" in line.split("  (")[0] and "  (" in line]
    assert named == ["W_out.1/7", "heads.2/3", "neurons.1/7", "W_gate.1/7", "W_up.1/7", "W_out.1/7"]


def test_vocabulary_prints_vectors_that_speak_of_words_and_of_files_of_words(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("garden\nbridge\n")
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, "vocabulary", checkpoint, "--topic", "river,stone", "--topic", "words.txt", "-k", 3) == 0
    first, second, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("‘river’, ‘stone’, ‘garden’, ‘bridge’ (")
    assert " vectors stand out with q <= 0.01, beside as many random tokens of similar rank" in second
    assert len(lines) == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "words.txt"], "nothing is built"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--vector", "W_out.1/7", "--depth", "quick"), "--depth beside --vector"),
        (("--vector", "W_out.1/7", "-o", "atlas"), "--output beside --vector"),
        (("--vector", "W_out.1/7", "--seed", 0), "--seed beside --vector"),
        (("sample", "--vector", "W_out.1/7"), "text sample beside --vector"),
        (("--vector", "W_out.1/7", "--topic", "river"), "--topic beside --vector"),
        (("--topic", "river", "--dry-run"), "--dry-run beside --topic"),
        (("-k", 20), "-k without --vector or --topic"),
        (("sample", "--preset", "folded"), "--preset without --vector or --topic"),
        (("--window", 64), "--window without a text"),
    ],
)
def test_vocabulary_refuses_options_that_would_change_nothing(
    arguments: tuple[object, ...],
    what: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, "vocabulary", checkpoint, *arguments) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"Refused: {what}",
        "  because it would change nothing",
        "  instead leave it out",
    ]
    assert list(tmp_path.iterdir()) == []


def test_every_parameter_of_vocabulary_belongs_to_something_it_does() -> None:
    names = set(inspect.signature(vocabulary).parameters) - {"context"}
    assert names == frozenset().union(*(way.uses for way in WAYS.values()))


def test_figures_saves_what_the_atlas_has_and_says_how_many(
    atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "figures", atlas, "-o", tmp_path / "drawn", "--format", "png") == 0
    saved = sorted(tmp_path.glob("drawn/*.png"))
    assert (tmp_path / "drawn" / "index.html").is_file()
    assert capsys.readouterr().out == f"{len(saved)} figures in {tmp_path / 'drawn'}: open index.html there\n"
    assert {"shares.png", "losses.png", "alignment.png", "spiral.png"} <= {path.name for path in saved}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in saved)
    assert _run(monkeypatch, "figures", atlas, "--run", "other", "-o", tmp_path / "none") != 0
    assert "it has no run other" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_option_names_are_frozen() -> None:
    """Adding an option is a decision: it changes this list, the documentation and the changelog."""
    import typer

    from microtome.cli.verbs import app

    def within(group: object, before: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, command in vars(group)["commands"].items():
            found |= within(command, f"{name} ") if "commands" in vars(command) else {f"{before}{name}": command}
        return found

    commands = within(typer.main.get_command(app))
    names = {name: sorted(o for p in command.params for o in p.opts if o.startswith("-")) for name, command in commands.items()}
    assert names == json.loads((Path(__file__).parent / "options.json").read_text())


def test_open_says_where_and_how_to_reach_it_from_another_machine(
    atlas: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    monkeypatch.setenv("SSH_CONNECTION", "there here")
    assert _run(monkeypatch, "open", atlas, "--port", 0) == 0
    first, second = capsys.readouterr().out.splitlines()
    port = first.split("http://127.0.0.1:")[1].split("/")[0]
    assert second.startswith(f"From your own machine: ssh -N -L {port}:127.0.0.1:{port} ")


def test_gpus_of_a_cluster_need_not_be_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = ModelOptions(str(checkpoint), "auto", "cuda:0,cuda:1", "refuse", EngineOptions("ray"))
    model = asked.load()
    assert model.device.type == "cpu"
    assert subject_of(model).devices == 2
    with pytest.raises(Refusal, match="torch finds no such device here"):
        replace(asked, engines=EngineOptions()).load()
