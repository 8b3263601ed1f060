"""A short form of the recipe of Yun et al. on SmolLM2: what should hold however little is read. It takes some minutes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from microtome.cli.packaged import fetch
from microtome.model import load
from recipes.claims import Claim
from recipes.yun2021 import claims, describe
from recipes.yun2021_measures import AUTOENCODER, QUICK, RANDOM, SHUFFLED, THEIRS, Found, measure

pytestmark = [pytest.mark.weights, pytest.mark.slow]

SHORT = replace(
    QUICK, passages=20, examples=18, speeches=6, words=70, units=384, turns=2, asked=1, most=40, fewest=40, top=10, places=5, looked=6, contexts=2,
    coloured=1, judged=500,
)  # fmt: skip


@pytest.fixture(scope="module")
def brown() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, and the Brown corpus is in its registry")
    return fetch("brown")


@pytest.fixture(scope="module")
def found(brown: Path, speeches: Path) -> Found:
    return measure(load(fetch("smollm2")), brown, speeches, SHORT)


def said(found: Found) -> dict[str, Claim]:
    return {each.says: each for each in claims(found)}


def test_factors_explain_more_than_what_costs_nothing(found: Found) -> None:
    assert said(found)["hidden states are sums of few factors of one dictionary for all layers"].agrees
    assert set(found.judged) >= {THEIRS, AUTOENCODER, RANDOM, "pca, as many", "pca largest, as many"}


def test_one_factor_tells_a_sense_and_so_do_other_directions(found: Found) -> None:
    (left,) = found.senses
    assert left.word == "left"
    scores = {method: each.scores for method, each in left.sense.anywhere.items()}
    assert scores["factor"].f1 > 0.75 > scores["majority"].f1
    assert scores["factor"].auroc > 0.85
    assert scores["state"].auroc > scores["factor"].auroc - 0.02
    assert scores["random direction"].auroc > 0.85, "the control without which the paper's number says little"
    first, second = (left.sense.sites[site, "factor"].scores.auroc for site in found.dictionaries[THEIRS].reads[:2])
    assert second > first + 0.15, "the sense comes after the embeddings"


def test_factors_of_patterns_are_there_beside_their_controls(found: Found) -> None:
    share = {
        name: {each.pattern.name: each.share[each.best].value for each in several} for name, several in found.patterns.items()
    }
    assert set(share) == {THEIRS, AUTOENCODER, RANDOM, SHUFFLED}
    assert {"passive", "speech, who said it", "nouns in a list"} <= set(share[THEIRS])
    assert share[THEIRS]["passive"] > share[RANDOM]["passive"]
    # that it is more than in text in another order takes the quick form's text and factors
    assert sum(share[THEIRS].values()) > sum(share[RANDOM].values()) + 0.1 * len(share[RANDOM])
    assert said(found)["a factor's activity means its pattern"].agrees is False, "of all activity, not of the largest alone"


def test_a_code_follows_its_pattern_through_changes(found: Found) -> None:
    (passive,) = (each for each in found.templates if each.family == "passive")
    mean = {name: float(codes.mean()) for name, codes in passive.codes.items()}
    assert mean["another tense"] > 0.5 * mean["as it is"] > 0
    assert mean["active, the same word"] < 0.5 * mean["as it is"]
    assert mean["the participle unknown"] < 0.5 * mean["as it is"]


def test_low_factors_need_no_context_and_halves_agree_about_levels(found: Found) -> None:
    agree, chance = found.levels.agreement()
    assert agree > chance + 0.3
    near = {each.level: float(each.near(0).nanmean()) for each in found.looked}
    assert near["low"] > near["middle"]
    page = describe(found)
    for part in ("random orders", "shuffled", "as remembered, to be verified", "What differs from the paper"):
        assert part in page
