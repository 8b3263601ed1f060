"""The verb `diff`, in process: which comparison two models get, and what of it is printed."""

import sys
from pathlib import Path

import pytest

from microtome.cli import main
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


def test_a_kind_is_refused_where_it_says_nothing(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, *pair, "--kind", "displacement") == 2
    assert "layers is 3 and 2" in capsys.readouterr().err
