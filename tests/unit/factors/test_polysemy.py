"""Senses of a word: a planted factor is found and judged on rows that did not choose it, and noise is not believed."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.corpus import prompt_batch
from microtome.factors.basis import Factors
from microtome.factors.coding import Lasso
from microtome.factors.dictionary import Dictionary
from microtome.factors.polysemy import METHODS, Nested, folds_of, nested, polysemy
from microtome.factors.scaling import identity
from microtome.model import capture
from tests.toys import toy_encoder
from tests.unit.factors.planted_dictionaries import planted_dictionary

SITES = (Site("resid_pre", 0), Site("resid_pre", 1))
WIDTH, UNITS, ROWS = 24, 48, 160


def _bases() -> list[Factors]:
    directions = planted_dictionary(UNITS, WIDTH, seed=1)
    made = Dictionary("toy", "shared", SITES, SITES, Lasso(0.1), identity(2, WIDTH), directions[None], torch.zeros(1, WIDTH))
    return [Factors(made, site) for site in SITES]


def _planted(seed: int = 0) -> tuple[dict[Site, Tensor], list[str], Tensor]:
    """Senses differ by factor 7 at the second site, and by nothing at the first."""
    generator = torch.Generator().manual_seed(seed)
    basis = _bases()[0].dictionary.directions[0]
    verb = torch.rand(ROWS, generator=generator) < 0.4
    states = {}
    for site in SITES:
        place = torch.stack([torch.randperm(40, generator=generator)[:3] + 8 for _ in range(ROWS)])
        codes = torch.zeros(ROWS, UNITS).scatter_(1, place, 1 + torch.rand(ROWS, 3, generator=generator))
        if site == SITES[1]:
            codes[verb, 7] = 1 + torch.rand(int(verb.sum()), generator=generator)
        states[site] = codes @ basis + 0.02 * torch.randn(ROWS, WIDTH, generator=generator)
    return states, ["verb" if each else "noun" for each in verb], torch.arange(ROWS) // 2


def test_the_planted_factor_is_chosen_at_its_layer_and_tells_the_senses() -> None:
    states, labels, document = _planted()
    (sense,) = polysemy(states, _bases(), labels, document)
    assert sense.name == "noun"
    assert sense.positives == labels.count("noun")
    here, there = sense.sites[SITES[0], "factor"], sense.sites[SITES[1], "factor"]
    assert set(there.chosen) == {(SITES[1], 7)}
    assert there.scores.auroc > 0.97
    assert there.scores.f1 > 0.9
    assert set(sense.anywhere["factor"].chosen) == {(SITES[1], 7)}
    assert here.scores.auroc < 0.7
    assert sense.anywhere["state"].scores.auroc > 0.95
    assert sense.anywhere["factor"].scores.auroc > sense.anywhere["coordinate"].scores.auroc
    assert sense.anywhere["factor"].scores.auroc > sense.anywhere["random direction"].scores.auroc
    assert set(sense.anywhere) == set(METHODS)


def test_where_labels_mean_nothing_a_search_in_sample_finds_much_and_held_out_rows_do_not() -> None:
    states, labels, document = _planted(3)
    mixed = [labels[each] for each in torch.randperm(ROWS, generator=torch.Generator().manual_seed(5)).tolist()]
    (sense,) = polysemy(states, _bases(), mixed, document)
    for method in ("factor", "coordinate", "component", "random direction"):
        found = sense.anywhere[method]
        assert found.in_sample > (0.55 if method == "factor" else 0.6), "codes are mostly 0, so that few ranks are at stake"
        assert abs(found.scores.auroc - 0.5) < 0.12


def test_a_state_probe_is_the_balanced_logistic_regression_of_each_part() -> None:
    states, labels, document = _planted(1)
    y = torch.tensor([label == "verb" for label in labels])
    fold = folds_of(y, document, 4)
    x = states[SITES[1]]
    found = nested({SITES[1]: x}, y, document, fold, "state", Nested(outer=4))
    areas = []
    for part in range(4):
        out = fold == part
        mean, deviation = x[~out].mean(0), x[~out].std(0)
        model = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-8, max_iter=500)
        model.fit(((x[~out] - mean) / deviation).numpy(), y[~out].numpy())
        score = model.decision_function(((x[out] - mean) / deviation).numpy())
        areas.append(roc_auc_score(y[out].numpy(), score))
    assert found.scores.auroc == pytest.approx(sum(areas) / 4, abs=2e-3)


def test_a_component_with_all_the_variance_is_found_by_the_rows_that_choose() -> None:
    _, labels, document = _planted(2)
    y = torch.tensor([label == "verb" for label in labels])
    generator = torch.Generator().manual_seed(8)
    axis = torch.nn.functional.normalize(torch.ones(WIDTH), dim=0)
    x = 5 * y[:, None] * axis + torch.randn(ROWS, WIDTH, generator=generator)
    fold = folds_of(y, document, 5)
    component = nested({SITES[0]: x}, y, document, fold, "component")
    assert component.chosen == {(SITES[0], 0): 5}
    assert component.scores.auroc > 0.99
    assert nested({SITES[0]: x}, y, document, fold, "coordinate").scores.auroc < 0.9


def test_three_senses_are_told_one_by_one_and_the_majority_knows_none() -> None:
    states, labels, document = _planted()
    three = [label if row % 3 else "name" for row, label in enumerate(labels)]
    found = polysemy(states, _bases(), three, document, Nested(3, 2))
    assert {sense.name for sense in found} == {"noun", "verb", "name"}
    for sense in found:
        assert sense.anywhere["majority"].scores.auroc == 0.5
        share = sense.positives / sense.rows
        expected = 2 * share / (1 + share) if share > 0.5 else 0.0
        assert sense.anywhere["majority"].scores.f1 == pytest.approx(expected, abs=0.02)


def test_parts_keep_documents_whole_and_have_both_labels() -> None:
    document = torch.arange(60) // 3
    y = torch.arange(60) % 5 == 0
    fold = folds_of(y, document, 5, seed=2)
    assert all(len(fold[document == each].unique()) == 1 for each in range(20))
    assert fold.bincount().tolist() == [12] * 5
    positives = torch.bincount(fold, weights=y.double())
    assert float(positives.max() - positives.min()) <= 2
    assert not torch.equal(fold, folds_of(y, document, 5, seed=3))


def test_states_of_an_encoder_separate_a_word_by_what_it_stands_beside() -> None:
    """From text to senses: `river` before `holds` or before `finds`, at the layer behind the first attention."""
    model = toy_encoder()
    texts = [
        f"The river {'holds' if n % 2 else 'finds'} the {['stone', 'letter', 'mirror', 'bridge'][n // 2 % 4]}."
        for n in range(48)
    ]
    batch = prompt_batch(model.tokenizer, texts)
    tokens = model.tokenizer
    assert tokens is not None
    river = int(tokens.encode(" river", add_special_tokens=False)[-1])
    at = (batch.ids == river).long().argmax(1)
    sites = (Site("resid_pre", 0), Site("resid_post", 1))
    states = {site: value[torch.arange(48), at] for site, value in capture(model, batch, sites).items()}
    directions = planted_dictionary(UNITS, WIDTH, seed=1)
    made = Dictionary("t", "shared", sites, sites, Lasso(0.2), identity(2, WIDTH), directions[None], torch.zeros(1, WIDTH))
    labels = ["holds" if n % 2 else "finds" for n in range(48)]
    (sense,) = polysemy(states, [Factors(made, site) for site in sites], labels, torch.arange(48) // 2, Nested(4, 3))
    assert sense.sites[sites[1], "state"].scores.auroc > 0.95
    assert sense.sites[sites[1], "factor"].scores.auroc > 0.8
    assert sense.sites[sites[0], "state"].scores.auroc == pytest.approx(0.5, abs=0.01)


def test_bad_labels_are_refused() -> None:
    states, labels, document = _planted()
    with pytest.raises(Refusal, match="one label only"):
        polysemy(states, _bases(), ["noun"] * ROWS, document)
    with pytest.raises(Refusal, match="2 documents"):
        polysemy(states, _bases(), labels, torch.arange(ROWS) % 2)
    with pytest.raises(Refusal, match="rarer label"):
        folds_of(torch.arange(10) == 0, torch.arange(10), 5)
    with pytest.raises(Refusal, match="must not be"):
        Nested(1, 2)
