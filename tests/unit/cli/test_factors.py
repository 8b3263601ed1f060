"""The verbs of factors: a dictionary is trained, written as another tool has it, and coded with again to the same numbers."""

from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas
from microtome.factors.stored import find_dictionary
from tests.unit.cli.calls import run as _run

SIZE = ("--units", 24, "--passes", 1, "--window", 24)
TRAINING = (*SIZE, "--active", 3)


@pytest.fixture(scope="module")
def atlas(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("factors") / "atlas"
    with pytest.MonkeyPatch.context() as patch:
        assert _run(patch, "factors", "train", checkpoint, text, "-o", output, "--sites", "resid_post.1", *TRAINING) == 0
    return output


def _densities(atlas: Path) -> list[float]:
    rows = Atlas(atlas).sql(
        "select s.value from unit_stats s join units u on u.unit = s.unit where stat = 'density' order by u.index"
    )
    return [row["value"] for row in rows.to_pylist()]


@pytest.mark.parametrize("form", ["saelens", "gemma_scope"])
def test_what_another_tool_reads_codes_the_text_alike(
    form: str,
    atlas: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _run(monkeypatch, "factors", "write", atlas, "--format", form, "-o", tmp_path / "theirs") == 0
    folder = capsys.readouterr().out.strip()
    again = tmp_path / "again"
    coding = ("factors", "encode", checkpoint, text, "--dictionary", folder, "--name", "theirs", "--site", "resid_post.1")
    assert _run(monkeypatch, *coding, "-o", again, "--window", 24) == 0
    assert _densities(again) == pytest.approx(_densities(atlas), abs=2e-3)
    assert find_dictionary(again).name == "theirs"


@pytest.mark.parametrize("method", ["topk", "matryoshka", "relu", "gated", "jumprelu", "matching", "sparse-coding"])
def test_every_method_trains(
    method: str, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    amount = ("--penalty", 0.5) if method in ("relu", "gated") else ("--active", 3)
    asked = ("--method", method, "--sites", "resid_post.1", *amount, *SIZE)
    assert _run(monkeypatch, "factors", "train", checkpoint, text, "-o", tmp_path / "atlas", *asked) == 0
    assert len(_densities(tmp_path / "atlas")) == 24


@pytest.mark.slow
def test_processes_make_the_dictionary_of_one(
    checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("factors", "train", checkpoint, text, "--sites", "resid_post.1", *TRAINING)
    for name, options in {"one": (), "two": ("--processes", 2, "--shards", 2)}.items():
        assert _run(monkeypatch, *asked, *options, "-o", tmp_path / name) == 0
    one, two = (find_dictionary(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(two.directions, one.directions, rtol=1e-3, atol=1e-4)
    assert _densities(tmp_path / "two") == pytest.approx(_densities(tmp_path / "one"), abs=2e-3)


def test_what_cannot_be_is_said_in_three_lines(
    atlas: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = (
        (("encode", checkpoint, text, "--dictionary", tmp_path / "none"), "no such file"),
        (("encode", checkpoint, text, "--dictionary", atlas, "--site", "resid_post.1"), "says itself where its states are"),
        (("encode", checkpoint, text, "--dictionary", atlas, "--name", "other"), "it has main"),
        (("train", checkpoint, text, "--name", "a/b"), "parts of addresses"),
        (("train", checkpoint, text, "--sites", "resid_pre.77"), "the last layer"),
        (("train", checkpoint, text, "--units", "900000", "--window", 24), "states to learn from"),
        (("train", checkpoint, text, "--preset", "paper", "--units", 24), "--units beside --preset paper"),
        (("train", checkpoint, text, "--preset", "paper", "--method", "topk"), "--method beside --preset paper"),
        (("train", checkpoint, text, "--processes", 3, "--shards", 2), "3 processes are not so many groups of 2"),
        (("train", checkpoint, text, "--units", 25, "--processes", 2, "--shards", 2), "25 units are not 2 equal parts"),
        (
            ("train", checkpoint, text, "--launcher", "torchrun"),
            "because one process is this one",
        ),
        (
            ("train", checkpoint, text, "--launcher", "here", "--processes", 2, "--engine", "ray"),
            "because processes that train are on that cluster",
        ),
        (("train", checkpoint, text, "--processes", 2, "--keep", "nothing"), "keep states: --keep bfloat16"),
        (("train", checkpoint, text, "--method", "sparse-coding", "--processes", 2), "name 1 process"),
        (("train", checkpoint, text, "--preset", "paper", "--processes", 2), "--processes beside --preset paper"),
        (("train", checkpoint, text, "--penalty", 2), "--penalty beside --method batch-topk"),
        (("train", checkpoint, text, "--method", "gated", "--active", 2), "--active beside --method gated"),
    )
    for arguments, why in wrong:
        assert _run(monkeypatch, "factors", *arguments, *(() if "-o" in arguments else ("-o", tmp_path / "atlas"))) == 2
        said = capsys.readouterr().err
        assert why in said
        assert said.startswith("Refused: ")
        assert not (tmp_path / "atlas").exists()
    assert _run(monkeypatch, "steer", checkpoint, "The river", "--unit", "factors@main/3@resid_post.1", "--set", 5) == 2
    assert "with --dictionary" in capsys.readouterr().err
    steering = ("--unit", "factors@main/3@resid_post.1", "--set", 5, "--most", 4, "--dictionary", atlas)
    assert _run(monkeypatch, "steer", checkpoint, "The river", *steering) == 0
    assert "factors@main/3@resid_post.1 set to 5" in capsys.readouterr().out
