"""The verb `diff`, in process: which comparison two models get, and what of it is printed."""

import inspect
import sys
from pathlib import Path

import pytest

from microtome.atlas import Settings, build
from microtome.cli import main
from microtome.cli.diff import ATLASES, MODELS
from microtome.cli.verbs import diff
from tests import toys


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["microtome", "diff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Models of three layers and of two, with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    toys.llama(2).save_pretrained(folder / "short")
    toys.decoder_tokenizer().save_pretrained(folder / "short")
    return toys.save_checkpoint(folder / "long"), folder / "short"


def test_two_shapes_are_aligned_and_one_is_when_asked(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, *pair, "--group", "W_up", "--group", "W_V") == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "short beside long: 350 shared tokens (100 % of the 350 of short, 100 % of the 350 of long), matched by text."
    )
    assert "Which layer of long each layer of short is assigned to:" in told
    rows = [line.split() for line in told.splitlines()]
    assert [row[:2] for row in rows if len(row) == 4 and row[0] in "01"] == [["0", "0"], ["1", "2"]]
    assert _run(monkeypatch, pair[0], pair[0], "--group", "W_V") == 0
    assert "long and long have the same W_V" in capsys.readouterr().out
    assert _run(monkeypatch, pair[0], pair[0], "--group", "W_V", "--kind", "alignment") == 0
    told = capsys.readouterr().out
    assert told.startswith("long beside long: 350 shared tokens")
    assert "coordinates" in told, "widths agree"


def test_what_was_left_out_is_done_with_the_option_that_is_named(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, *pair, "--group", "W_out", "--operations", "1e6") == 0
    told = capsys.readouterr().out.split()
    place = told.index("--operations")
    assert "matched:" in told[:place]
    assert _run(monkeypatch, *pair, "--group", "W_out", "--operations", told[place + 1].rstrip(",")) == 0
    assert "not matched" not in capsys.readouterr().out


def test_options_that_would_change_nothing_are_refused(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas = build(pair[1], output=tmp_path / "atlas", settings=Settings(lenses=("vocabulary",))).path
    for option, value in {
        "--group": "W_V",
        "--words": "nouns.txt",
        "--kind": "alignment",
        "--operations": "1e9",
        "--seed": "1",
        "--output": "there",
    }.items():
        assert _run(monkeypatch, atlas, atlas, option, value) == 2
        told = " ".join(capsys.readouterr().err.split())
        assert f"{option} without two models because it would change nothing" in told
    assert _run(monkeypatch, atlas, atlas, "--top", "3", "--run", "main") == 0
    assert "statistics of units in both" in capsys.readouterr().out
    assert _run(monkeypatch, pair[0], pair[0], "--operations", "1e9") == 2
    assert "Refused: operations" in capsys.readouterr().err


def test_every_parameter_of_diff_belongs_to_something_it_compares() -> None:
    assert set(inspect.signature(diff).parameters) - {"context"} == MODELS.uses | ATLASES.uses


def test_a_kind_is_refused_where_it_says_nothing(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, *pair, "--kind", "displacement") == 2
    assert "layers is 3 and 2" in capsys.readouterr().err
