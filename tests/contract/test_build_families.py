"""Every family through a whole build, on toy text or toy images: all tables, nothing that is not a number, or the reason why."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from microtome.atlas import LENSES, Atlas, Settings, build
from microtome.model import Model
from tests import toys
from tests.contract.pictures import processor_for, write_pictures
from tests.unit.model.tiny import TINY, opened

_SPECIAL = {"unk_token": "<unk>", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_BEGINS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "opt")
"""Decoders that here get a special token ahead of each window; the others get none."""
_UNMEASURED = {"token_share_top", "token_share_bottom", "skewness", "kurtosis"}
"""Statistics that have no value where no context was tried, or where a unit never varies."""


@cache
def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Words of the toy texts, ids below 50, padding at the id that the tiny configurations say."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.train_from_iterator(toys.toy_texts(), trainers.WordLevelTrainer(special_tokens=[*_SPECIAL.values()]))
    marks = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]") if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


def _read(name: str, folder: Path) -> tuple[Model, Any]:
    """The tiny model with what it reads with, and something to read."""
    model = opened(name)
    if model.family.inputs == "image":
        return replace(model, processor=processor_for(name)), write_pictures(folder)
    template = "$A" if model.shape.causal else "[CLS] $A [SEP]"
    if name.partition("-")[0] in _BEGINS:
        template = "[CLS] $A"
    return replace(model, tokenizer=_tokenizer(template)), toys.toy_texts(8, 60)


def _bad(values: list[float | None]) -> int:
    return sum(value is None or not math.isfinite(value) for value in values)


def _column(atlas: Atlas, query: str) -> list[Any]:
    table = atlas.sql(query)
    return table.column(0).to_pylist()


@pytest.mark.parametrize("name", TINY)
def test_a_family_is_built_whole(name: str, tmp_path: Path) -> None:
    model, source = _read(name, tmp_path / "source")
    atlas = build(model, source, output=tmp_path / "atlas", settings=Settings(window=24))
    run = atlas.manifest.runs["main"]
    assert run.status == "complete"
    _check_units(atlas, model)
    _check_contexts(atlas, model)
    _check_geometry(atlas, model)
    _check_losses(atlas, model, run.absent)
    _check_readings(atlas, model, run.absent)
    lenses = {lens.name for lens in LENSES} - ({"vocabulary"} if model.family.inputs == "image" else set())
    assert set(_column(atlas, "select distinct lens from findings")) == lenses


def _check_units(atlas: Atlas, model: Model) -> None:
    shape = model.shape
    units = _column(atlas, "select unit from units where basis = 'neurons'")
    assert len(units) == len(set(units)) == shape.layers * max(shape.experts, 1) * shape.d_mlp
    assert (f"neurons.{shape.layers - 1}/{'e3.' if shape.experts else ''}7" in units) is True
    for stat in _column(atlas, "select distinct stat from unit_stats where stat not like 'k_composition'"):
        rows = atlas.sql(f"select value, control, lo, hi, q from unit_stats where stat = '{stat}'").to_pylist()
        assert len(rows) >= shape.layers
        if stat not in _UNMEASURED:
            assert _bad([row["value"] for row in rows]) == 0, stat
        for row in rows:
            assert all(value is None or math.isfinite(value) for value in row.values()), stat
            assert row["lo"] is None or row["lo"] <= row["value"] <= row["hi"]
    stats = set(_column(atlas, "select distinct stat from unit_stats where unit like 'neurons%'"))
    assert {"mean", "std", "density", "min", "max", "write_norm"} <= stats
    assert ("token_share_top" in stats) == (model.family.inputs == "text")


def _check_contexts(atlas: Atlas, model: Model) -> None:
    """Each points at an ordinary token, and its own activation is the middle one of those around it."""
    wrong = atlas.sql(
        "select count(*) as n, count(*) filter (w.roles[c.position + 1] = 3) as ordinary, "
        "count(*) filter (abs(c.activations[17] * c.scale - c.value) <= 0.51 * c.scale + 1e-6) as middle, "
        "count(*) filter (isfinite(c.value)) as finite from contexts c join windows w on c.run = w.run and c.window = w.window"
    ).to_pylist()[0]
    assert wrong["n"] == wrong["ordinary"] == wrong["middle"] == wrong["finite"] == _column(atlas, "select count(*) from contexts")[0]
    units = atlas.sql("select \"end\" as e, count(distinct unit) as n from contexts where \"end\" in ('top', 'bottom') group by 1")
    expected = model.shape.layers * max(model.shape.experts, 1) * model.shape.d_mlp
    assert {row["e"]: row["n"] for row in units.to_pylist()} == {"top": expected, "bottom": expected}


def _check_geometry(atlas: Atlas, model: Model) -> None:
    rows = atlas.sql("select part, share, control, norm from geometry_shares").to_pylist()
    assert len(rows) == 4 * (model.shape.layers + 1)
    assert _bad([row["norm"] for row in rows]) == 0
    assert _bad([row[key] for row in rows if row["part"] != "mu" for key in ("share", "control")]) == 0


def _check_losses(atlas: Atlas, model: Model, absent: dict[str, str]) -> None:
    objective = {"causal": "next_token", "masked": "masked_token"}.get(model.shape.head)
    rows = atlas.sql("select objective, loss, control, lo, hi from layer_loss where site is not null").to_pylist()
    if objective is None:
        assert rows == []
        assert absent["layer_loss"] == "the checkpoint has no language-model head"
        return
    assert {row["objective"] for row in rows} == {objective}
    assert len(rows) == model.shape.layers
    assert _bad([value for row in rows for key, value in row.items() if key != "objective"]) == 0
    assert all(row["lo"] <= row["loss"] <= row["hi"] for row in rows)


def _check_readings(atlas: Atlas, model: Model, absent: dict[str, str]) -> None:
    tokens = atlas.sql("select token, score from tokens").to_pylist()
    if "W_E" in model.family.absent:
        assert tokens == []
        assert absent["tokens"] == absent["head scores"] == model.family.absent["W_E"]
    else:
        assert _bad([row["score"] for row in tokens]) == 0
        assert {row["token"] for row in tokens} <= set(range(model.shape.vocab))
    texts = _column(atlas, "select text from vocabulary order by token")
    assert len(texts) == model.shape.vocab
    assert ("vocabulary" in absent) == (model.family.inputs == "image")


def test_a_masked_model_whose_tokenizer_has_no_mask_goes_without_losses(tmp_path: Path) -> None:
    tokenizer = toys.decoder_tokenizer()
    assert tokenizer.mask_token_id is None
    model = replace(toys.toy_encoder(), tokenizer=tokenizer)
    atlas = build(model, toys.toy_texts(8, 60), output=tmp_path / "atlas", settings=Settings(window=24))
    assert atlas.manifest.runs["main"].absent["layer_loss"] == "the tokenizer has no mask token"
    assert _column(atlas, "select count(*) from layer_loss") == [0]
    assert _column(atlas, "select count(*) from contexts")[0] > 0
