"""Differences of two atlases: statistics unit by unit, and how sure they are."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from microtome.atlas import Settings, build
from microtome.atlas.diff import diff
from microtome.atlas.differences import AtlasDifference, Comparison
from microtome.cli.diff import show_difference
from microtome.core import Refusal
from microtome.store import TABLES, digest, read_manifest, write_manifest, write_table
from tests import toys


@pytest.fixture(scope="module")
def atlases(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of both models; the second has a statistic with intervals in place of its own."""
    folder = tmp_path_factory.mktemp("atlases")
    paths = [
        build(model, output=folder / model.name, settings=Settings(lenses=("vocabulary",))).path for model in (base, tuned)
    ]
    for number, path in enumerate(paths):
        values = [1.0, 2.0, 3.0, 4.0 + 5.0 * number]
        rows = [
            {"unit": f"neurons.0/{unit}", "stat": "rate", "value": value, "lo": value - 0.98, "hi": value + 0.98, "run": "main"}
            for unit, value in enumerate(values)
        ] + [{"unit": "neurons.1/0", "stat": "exact", "value": 7.0 + number, "run": "main"}]
        if number:
            rows.append({"unit": "neurons.9/9", "stat": "rate", "value": 1.0, "run": "main"})
        _rewrite(path, rows)
    return paths[0], paths[1]


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Give an atlas these statistics of units."""
    file = write_table(path, "unit_stats", "vocabulary.main", pa.Table.from_pylist(rows, TABLES["unit_stats"].schema))
    manifest = read_manifest(path)
    manifest.runs["main"].files[str(file.relative_to(path))] = digest(file)
    write_manifest(path, manifest)
    return path


def test_units_of_two_atlases_are_matched_by_address_and_ranked(
    atlases: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff(*atlases)
    assert isinstance(found, AtlasDifference)
    assert (found.matched, found.only_base, found.only_tuned, found.same_text) == (5, 0, 1, True)
    first = found.rows.to_pylist()[0]
    assert (first["unit"], first["base"], first["tuned"], first["difference"]) == ("neurons.0/3", 4.0, 9.0, 5.0)
    assert first["z"] == pytest.approx(5 / (0.5 + 0.5))  # standard errors of 0.5 each, which may be all of one kind
    assert first["effect"] == pytest.approx(5 / torch.tensor([1.0, 2, 3, 4]).std().item())
    p = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(first["z"], dtype=torch.float64)).item())
    assert first["q"] == pytest.approx(4 * p, rel=1e-3, abs=1e-12)
    exact = next(row for row in found.rows.to_pylist() if row["stat"] == "exact")
    assert (exact["difference"], exact["z"], exact["q"], exact["effect"]) == (1.0, None, None, None)
    show_difference(found, 2)
    told = capsys.readouterr().out
    assert "neurons.0/3" in told
    assert "equal" not in told
    assert "q is by the largest error their difference can have, and is rather too large." in told
    show_difference(diff(atlases[0], atlases[0]), 2)
    told = capsys.readouterr().out
    assert told.endswith("All of them are equal.\n")
    assert "What differs most" not in told


@pytest.mark.parametrize("together", [-1.0, 0.0, 1.0])
def test_chance_is_not_taken_for_a_difference_however_two_statistics_err_together(
    atlases: tuple[Path, Path], tmp_path: Path, together: float
) -> None:
    """Both are 1 but for errors of 0.1, of this correlation: of 4,000 a two-sided test at 5 % may find 200, give or take 14."""
    errors = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors[1] = together * errors[0] + (1 - together**2) ** 0.5 * errors[1]
    paths = []
    for name, values in zip(("one", "other"), (1 + 0.1 * errors).tolist(), strict=True):
        rows = [
            {
                "unit": f"neurons.0/{unit}",
                "stat": "rate",
                "value": value,
                "lo": value - 0.196,
                "hi": value + 0.196,
                "run": "main",
            }
            for unit, value in enumerate(values)
        ]
        paths.append(_rewrite(shutil.copytree(atlases[0], tmp_path / name), rows))
    found = diff(*paths)
    assert isinstance(found, AtlasDifference)
    z = torch.tensor(found.rows["z"].to_numpy())
    assert int((z.abs() > 1.96).sum()) <= 200 + 3 * 14
    assert float(z.std()) == pytest.approx({-1.0: 1, 0.0: 0.5**0.5, 1.0: 0}[together], abs=0.02)


def test_an_interval_that_ends_at_zero_says_how_sure_a_statistic_is_by_its_other_end(
    atlases: tuple[Path, Path], tmp_path: Path
) -> None:
    paths = []
    for name, value in (("one", 0.1), ("other", 1.1)):
        row = {"unit": "heads.0/0", "stat": "kl", "value": value, "lo": max(value - 0.98, 0), "hi": value + 0.98, "run": "main"}
        paths.append(_rewrite(shutil.copytree(atlases[0], tmp_path / name), [row]))
    found = diff(*paths)
    assert isinstance(found, AtlasDifference)
    assert found.rows["z"].to_pylist() == pytest.approx([1.0 / (0.5 + 0.5)])


def test_atlases_that_only_compare_models_have_no_statistics(base: Path, tuned: Path, tmp_path: Path) -> None:
    path = tmp_path / "atlas"
    diff(base, tuned, output=path)
    with pytest.raises(Refusal, match="run since-base says how two models differ; build it first, with microtome build"):
        diff(path, path)
    diff(base, tuned, output=path, run="again")
    with pytest.raises(Refusal, match="runs again and since-base say how two models differ; build it first"):
        diff(path, path)
    build(tuned, output=path, settings=Settings(lenses=("vocabulary",)))
    with pytest.raises(Refusal, match="run again says how two models differ; name one by --run: main"):
        diff(path, path, run="again")
    assert isinstance(diff(path, path), AtlasDifference)
    manifest = read_manifest(path)
    manifest.runs = {"main": manifest.runs["main"].model_copy(update={"depths": {}, "pending": {"vocabulary": "quick"}})}
    write_manifest(path, manifest)
    with pytest.raises(Refusal, match="run main is not built yet; build it first"):
        diff(path, path)


def test_texts_differ_only_where_there_are_two(atlases: tuple[Path, Path], tmp_path: Path) -> None:
    paths = [shutil.copytree(path, tmp_path / path.name) for path in atlases]
    said = []
    for texts in ((None, "a"), ("a", "a"), ("a", "b")):
        for path, text in zip(paths, texts, strict=True):
            manifest = read_manifest(path)
            corpus = None if text is None else {"fingerprint": text}
            manifest.runs["main"] = manifest.runs["main"].model_copy(update={"corpus": corpus})
            write_manifest(path, manifest)
        found = diff(*paths)
        assert isinstance(found, AtlasDifference)
        said.append(found.same_text)
    assert said == [True, True, False]


def test_what_would_change_nothing_is_refused(atlases: tuple[Path, Path], base: Path) -> None:
    for comparison, name in (
        (Comparison(groups=("W_V",)), "groups"),
        (Comparison("displacement"), "kind"),
        (Comparison(seed=1, k=3), "k, seed"),
        (Comparison(operations=1e9), "operations"),
    ):
        with pytest.raises(Refusal, match=f"^{name}: that is for models, and these are atlases; leave it out"):
            diff(*atlases, comparison=comparison)
    assert isinstance(diff(*atlases, comparison=Comparison()), AtlasDifference)
    with pytest.raises(Refusal, match="^operations: every vector of two models of one shape is compared, whatever that takes"):
        diff(base, base, comparison=Comparison(operations=1e9))


def test_what_does_not_correspond_is_refused(atlases: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="it is an atlas and the other is a model; name two models or two atlases"):
        diff(atlases[0], base)
    with pytest.raises(Refusal, match="an output: that is for models, and these are atlases"):
        diff(*atlases, output=tmp_path / "x")
    with pytest.raises(Refusal, match="there is no run other; name one by --run: main"):
        diff(*atlases, run="other")
    toys.llama(2).save_pretrained(tmp_path / "short")
    toys.decoder_tokenizer().save_pretrained(tmp_path / "short")
    short = build(tmp_path / "short", output=tmp_path / "short-atlas").path
    with pytest.raises(Refusal, match="whose units do not correspond"):
        diff(atlases[0], short)
