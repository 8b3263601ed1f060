"""What units are about, in the tables of an atlas: by another computation, and apart from what chance gives."""

from pathlib import Path

import numpy as np
import pytest

from microtome.atlas import Atlas, Settings, build
from microtome.model import open_checkpoint
from microtome.readout.meanings import token_meanings
from microtome.store import MEANING
from tests import toys


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    folder = tmp_path_factory.mktemp("meanings")
    settings = Settings(window=24, lenses=("neurons", "vocabulary"))
    return build(
        toys.save_checkpoint(folder / "model"), toys.toy_texts(documents=8), output=folder / "atlas", settings=settings
    )


def _vectors(atlas: Atlas, end: str, draws: str) -> dict[object, np.ndarray]:
    query = f"select unit, draw, vector from unit_meanings where \"end\" = '{end}' and draw {draws} order by draw, unit"
    rows = atlas.sql(query).to_pylist()
    return {row["unit"] or row["draw"]: np.array(row["vector"], float) for row in rows}


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _tokens(atlas: Atlas) -> np.ndarray:
    model = open_checkpoint(Path(atlas.path).parent / "model")
    meanings = token_meanings(model.weights.get("W_E"), MEANING).double().numpy()
    kept = np.array(atlas.sql("select vector from token_meanings order by token")["vector"].to_pylist(), float)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(kept / np.maximum(lengths, 1), meanings, atol=0.02)
    return meanings


def test_of_contexts_near_and_rare_tokens_count_most(atlas: Atlas) -> None:
    meanings = _tokens(atlas)
    windows = {row["window"]: row["ids"] for row in atlas.sql('select "window", ids from windows').to_pylist()}
    counts = np.bincount(np.concatenate(list(windows.values())), minlength=len(meanings))
    weight = 0.001 / (0.001 + counts / counts.sum())
    contexts = atlas.sql('select unit, "window", position from contexts where "end" = \'top\'').to_pylist()
    sums: dict[str, list[np.ndarray]] = {}
    for row in contexts:
        ids = windows[row["window"]]
        near = range(max(0, row["position"] - 8), min(len(ids), row["position"] + 9))
        made = sum(meanings[ids[at]] * weight[ids[at]] / (1 + abs(at - row["position"])) for at in near)
        sums.setdefault(str(row["unit"]), []).append(np.asarray(made))
    mean = np.mean([each for rows in sums.values() for each in rows], 0)
    found = _vectors(atlas, "top", "= 0")
    assert set(found) == set(sums)
    for unit, rows in sums.items():
        assert _cosine(found[unit], np.mean(rows, 0) - mean) > 0.999, unit


def test_of_promoted_tokens_those_of_units_alone(atlas: Atlas) -> None:
    meanings = _tokens(atlas)
    units = {row["unit"] for row in atlas.sql("select unit from units").to_pylist()}
    rows = [row for row in atlas.sql("select unit, token from tokens where \"end\" = '+'").to_pylist() if row["unit"] in units]
    own: dict[str, list[np.ndarray]] = {}
    for row in rows:
        own.setdefault(row["unit"], []).append(meanings[row["token"]])
    mean = np.mean([meanings[row["token"]] for row in rows], 0)
    found = _vectors(atlas, "+", "= 0")
    assert set(found) == set(own)
    for unit, tokens in own.items():
        expected = np.mean(tokens, 0) - mean
        if np.linalg.norm(expected) > 1e-3:
            assert _cosine(found[unit], expected) > 0.999, unit


def test_contexts_dealt_to_no_unit_are_less_alike_than_those_of_one(atlas: Atlas) -> None:
    """A unit's own contexts agree on something; those dealt out point anywhere, about the mean of all."""
    dealt = np.stack(list(_vectors(atlas, "top", "> 0").values()))
    own = np.stack(list(_vectors(atlas, "top", "= 0").values()))
    assert 20 < len(dealt) <= 256
    lengths = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (dealt, own)]
    assert np.linalg.norm(lengths[0].mean(0)) < 0.25
    queries = token_meanings(open_checkpoint(Path(atlas.path).parent / "model").weights.get("W_E"), MEANING).double().numpy()
    high = [np.quantile(rows @ queries.T, 0.999) for rows in lengths]
    assert high[1] > high[0]


def test_a_run_without_units_has_no_vectors(tmp_path: Path) -> None:
    atlas = build(
        toys.toy_decoder(), toys.toy_texts(documents=8), output=tmp_path, settings=Settings(window=24, lenses=("geometry",))
    )
    assert not [file for file in atlas.manifest.runs["main"].files if "meanings" in file]
