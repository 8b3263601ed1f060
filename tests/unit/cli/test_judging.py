"""The verbs that judge dictionaries: a table to read, an atlas to ask, and names that say which dictionary is meant."""

from pathlib import Path

import pytest
from rich.console import Console

from microtome.atlas import Atlas
from microtome.cli.judged import _show
from microtome.factors.numbers import Mean
from microtome.factors.stored import find_dictionary
from tests.unit.cli.calls import run as _run

TRAINING = ("--units", 24, "--active", 3, "--passes", 1, "--window", 24, "--sites", "resid_post.1")


@pytest.fixture(scope="module")
def atlas(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dictionaries, of two seeds."""
    output = tmp_path_factory.mktemp("factors") / "atlas"
    with pytest.MonkeyPatch.context() as patch:
        for name, seed in (("one", 0), ("two", 1)):
            training = ("factors", "train", checkpoint, text, "-o", output, "--name", name, "--seed", seed, "--run", name)
            assert _run(patch, *training, *TRAINING) == 0
    return output


def test_a_dictionary_is_evaluated_where_it_is_and_once(
    atlas: Path, checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("factors", "evaluate", checkpoint, text, "--dictionary", atlas, "--name", "one", "-o", atlas, "--window", 24)
    monkeypatch.setenv("COLUMNS", "160")
    assert _run(monkeypatch, *asked) == 0
    said = capsys.readouterr().out
    for word in ("expl.", "KL", "detect", "random directions, greedy codes", "learnt anew", "factors of the 24 of one explain"):
        assert word in said, word
    (sites,) = (line for line in said.splitlines() if line.split() and set(line.split()) == {"1", "site"})
    assert sites.count("1 site") >= 5, "each column says over how many sites its means are"
    files = sorted(file.name for file in (atlas / "dictionaries").iterdir())
    assert files == ["factors-one.one.safetensors", "factors-two.two.safetensors"]
    assert find_dictionary(atlas, "one").name == "one"
    (row,) = Atlas(atlas).sql("select file from dictionaries where run = 'evaluation'").to_pylist()
    assert row["file"] == "dictionaries/factors-one.one.safetensors"
    before = {file: file.stat().st_mtime_ns for file in atlas.rglob("*.parquet")}
    assert _run(monkeypatch, *asked) == 0
    assert {file: file.stat().st_mtime_ns for file in atlas.rglob("*.parquet")} == before


def test_two_are_compared_by_the_names_they_are_given(
    atlas: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = next((atlas / "dictionaries").glob("factors-two.*"))
    both = ("--dictionary", f"one={atlas}", "--dictionary", f"again={file}")
    assert _run(monkeypatch, "factors", "compare", checkpoint, text, *both, "-o", tmp_path / "both", "--window", 24) == 0
    assert "matched one to one with those of again" in capsys.readouterr().out.replace("\n", " ")
    found = Atlas(tmp_path / "both")
    assert [row["name"] for row in found.sql("select name from dictionaries order by name").to_pylist()] == ["again", "one"]
    (row,) = found.sql(
        "select count(*) as n from links where kind = 'same direction' and unit like 'factors@one/%'"
    ).to_pylist()
    assert 0 < row["n"] <= 24
    unknown = found.sql("select name from dictionary_stats where stat = 'learnt_from'").to_pylist()
    assert unknown == [], "atlases know what their dictionaries have learnt from"


def test_a_control_of_fewer_sites_stands_beside_the_numbers_of_these(capsys: pytest.CaptureFixture[str]) -> None:
    whole, some = {"": Mean(0.5, 0.5, 6)}, {"pca": Mean(0.25, 0.125, 2), "zero": Mean(0.5, 0.75, 6)}
    _show(Console(width=120), "own", {"explained_variance": whole | some, "kl": {"": Mean(1.0, 1.0, 1)}})
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["6", "sites", "1", "site"] for line in lines)
    assert any(line.split() == ["pca", "12.5%", "(2:", "25.0%)"] for line in lines)
    assert any(line.split() == ["zero", "75.0%"] for line in lines)


def test_what_cannot_be_judged_is_said_before_anything_is_done(
    atlas: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = next((atlas / "dictionaries").glob("factors-two.*"))
    wrong = (
        (("evaluate", "--dictionary", atlas, "-o", tmp_path / "x"), "it has one, two"),
        (("evaluate", "--dictionary", tmp_path / "none", "-o", tmp_path / "x"), "no such file"),
        (("compare", "--dictionary", file, "-o", tmp_path / "x"), "give --dictionary twice"),
        (("compare", "--dictionary", file, "--dictionary", file, "-o", tmp_path / "x"), "--dictionary NAME=PATH"),
        (("evaluate", "--dictionary", f"one={file}", "-o", atlas), "the atlas has another one of this name"),
        (("evaluate", "--dictionary", file, "-o", atlas, "--run", "two"), "use another --run NAME"),
    )
    for (verb, *arguments), why in wrong:
        assert _run(monkeypatch, "factors", verb, checkpoint, text, *arguments, "--window", 24) == 2
        said = capsys.readouterr().err
        assert why in said, said
        assert not (tmp_path / "x").exists()


def test_a_dry_run_says_what_it_would_take(
    atlas: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("--dictionary", f"one={atlas}", "-o", tmp_path / "x", "--window", 24, "--dry-run")
    assert _run(monkeypatch, "factors", "evaluate", checkpoint, text, *asked) == 0
    assert capsys.readouterr().out.startswith("text ")
    assert not (tmp_path / "x").exists()
