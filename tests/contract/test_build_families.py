"""Every family through a whole build, on toy text or toy images: all tables, nothing that is not a number, or the reason why."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from microtome.atlas import Atlas, Settings, build
from microtome.model import Model
from tests import toys
from tests.contract.tiny_inputs import processor_for, word_tokenizer, write_pictures
from tests.unit.model.tiny import TINY, opened

_BEGINS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "opt")
"""Decoders that here get a special token ahead of each window; the others get none."""
_UNMEASURED = {
    *(f"{what}_share_{end}" for what in ("token", "next") for end in ("top", "bottom")),
    *("skewness", "kurtosis", "kurtosis_confirm"),
}
"""Statistics that have no value where no context was tried, or where a unit never varies."""

_OBJECTIVES = {"causal": "next_token", "masked": "masked_token"}


def _read(name: str, folder: Path) -> tuple[Model, Any]:
    """The tiny model with what it reads with, and something to read."""
    model = opened(name)
    if model.family.inputs == "image":
        return replace(model, processor=processor_for(name)), write_pictures(folder)
    template = "$A" if model.shape.causal else "[CLS] $A [SEP]"
    if name.partition("-")[0] in _BEGINS:
        template = "[CLS] $A"
    return replace(model, tokenizer=word_tokenizer(template)), toys.toy_texts(8, 60)


def _rows(atlas: Atlas, *queries: str) -> list[list[dict[str, Any]]]:
    """The rows of several queries, from one connection."""
    with atlas.connect() as connection:
        return [connection.sql(query).to_arrow_table().to_pylist() for query in queries]


def _bad(rows: list[dict[str, Any]], *columns: str) -> int:
    return sum(row[column] is None or not math.isfinite(row[column]) for row in rows for column in columns)


@pytest.mark.parametrize("name", TINY)
def test_a_family_is_built_whole(name: str, tmp_path: Path) -> None:
    model, source = _read(name, tmp_path / "source")
    atlas = build(model, source, output=tmp_path / "atlas", settings=Settings(window=24))
    run = atlas.manifest.runs["main"]
    assert run.status == "complete"
    units, stats, contexts, extremes, shares, losses, tokens, texts, lenses = _rows(
        atlas,
        "select unit from units where basis = 'neurons'",
        "select unit, stat, value, control, lo, hi, q from unit_stats",
        _CONTEXTS,
        "select \"end\" as side, count(distinct unit) as n from contexts where \"end\" in ('top', 'bottom') group by 1",
        "select part, share, control, norm from geometry_shares",
        "select objective, loss, control, lo, hi from layer_loss where site is not null",
        "select token, score from tokens",
        "select text from vocabulary",
        "select distinct lens from findings",
    )
    shape = model.shape
    size = shape.layers * max(shape.experts, 1) * shape.d_mlp
    assert len({row["unit"] for row in units}) == len(units) == size
    assert f"neurons.{shape.layers - 1}/{'e3.' if shape.experts else ''}7" in {row["unit"] for row in units}
    assert {row["side"]: row["n"] for row in extremes} == {"top": size, "bottom": size}
    assert contexts[0]["n"] == contexts[0]["inside"] == contexts[0]["ordinary"] == contexts[0]["middle"] > 0
    _check_stats(stats, model)
    assert len(shares) == 4 * (shape.layers + 1)
    assert _bad(shares, "norm") == _bad([row for row in shares if row["part"] != "mu"], "share", "control") == 0
    _check_losses(losses, model, run.absent)
    _check_readings(tokens, texts, model, run.absent)
    spoken = {"vocabulary"} if "W_E" not in model.family.absent or losses else set()
    assert {"geometry"} <= {row["lens"] for row in lenses} <= {"geometry", "neurons"} | spoken, "random weights may say nothing"


_CONTEXTS = """
    select count(*) as n, count(w.window) as inside, count(*) filter (w.roles[c.position + 1] = 3) as ordinary,
           count(*) filter (abs(c.activations[17] * c.scale - c.value) <= 0.51 * c.scale + 1e-6) as middle
    from contexts c left join windows w on c.run = w.run and c.window = w.window
"""
"""Contexts, those whose window there is, those at an ordinary token, those whose value is the middle one around it."""


def _check_stats(rows: list[dict[str, Any]], model: Model) -> None:
    measured = [row for row in rows if row["stat"] not in _UNMEASURED]
    assert _bad(measured, "value") == 0
    for row in rows:
        assert all(row[column] is None or math.isfinite(row[column]) for column in ("value", "control", "lo", "hi", "q")), row
        assert row["lo"] is None or row["lo"] <= row["value"] <= row["hi"], row
    neurons = {row["stat"] for row in rows if row["unit"].startswith("neurons.")}
    assert {"mean", "std", "density", "min", "max", "write_norm"} <= neurons
    assert ("token_share_top" in neurons) == (model.family.inputs == "text")
    assert {"copying_score", "matching_score"} <= {row["stat"] for row in rows} or "W_E" in model.family.absent


def _check_losses(rows: list[dict[str, Any]], model: Model, absent: dict[str, str]) -> None:
    if model.shape.head not in _OBJECTIVES:
        assert rows == []
        assert absent["layer_loss"] == "the checkpoint has no language-model head"
        return
    assert [row["objective"] for row in rows] == [_OBJECTIVES[model.shape.head]] * model.shape.layers
    assert _bad(rows, "loss", "control", "lo", "hi") == 0
    assert all(row["lo"] <= row["loss"] <= row["hi"] for row in rows)


def _check_readings(tokens: list[dict[str, Any]], texts: list[Any], model: Model, absent: dict[str, str]) -> None:
    assert len(texts) == model.shape.vocab
    assert ("vocabulary" in absent) == (model.family.inputs == "image")
    if "W_E" in model.family.absent:
        assert tokens == []
        assert absent["tokens"] == absent["head scores"] == model.family.absent["W_E"]
        return
    assert tokens
    assert _bad(tokens, "score") == 0
    assert {row["token"] for row in tokens} <= set(range(model.shape.vocab))


def test_a_masked_model_whose_tokenizer_has_no_mask_goes_without_losses(tmp_path: Path) -> None:
    tokenizer = toys.decoder_tokenizer()
    assert tokenizer.mask_token_id is None
    model = replace(toys.toy_encoder(), tokenizer=tokenizer)
    atlas = build(model, toys.toy_texts(8, 60), output=tmp_path / "atlas", settings=Settings(window=24))
    assert atlas.manifest.runs["main"].absent["layer_loss"] == "the tokenizer has no mask token"
    losses, contexts = _rows(atlas, "select * from layer_loss", "select count(*) as n from contexts")
    assert losses == []
    assert contexts[0]["n"] > 0
