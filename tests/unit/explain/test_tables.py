"""Tables of tokens and runs, on units that are functions of tokens, and by hand."""

from dataclasses import replace

import pytest
import torch

from microtome.core import Refusal
from microtome.explain import ByRule, Explanation, TableExplainer, scores
from microtome.explain.tables import best_order, fitted
from tests.unit.explain.planted import bigram_unit, examples_of, name, random_unit, token_unit


def pearson(order: int, unit: object, vocab: int = 6) -> float:
    examples = examples_of(unit, vocab)  # pyright: ignore[reportArgumentType]
    return scores(TableExplainer(order, name).explain(examples), ByRule(), examples, draws=0).pearson


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_unit_of_a_token_is_explained_whole(order: int) -> None:
    assert pearson(order, token_unit) == pytest.approx(1)


def test_a_unit_of_a_pair_needs_pairs() -> None:
    assert pearson(2, bigram_unit) == pytest.approx(1)
    # corr of 1[pair] with the token's share of it, at most sqrt(share)
    assert 0.2 < pearson(1, bigram_unit) < 0.6


def test_runs_are_as_long_as_calibration_excerpts_ask_for_and_no_longer() -> None:
    pair, token = (examples_of(unit, 6) for unit in (bigram_unit, token_unit))
    assert best_order(pair, (1, 2, 3)) == 2
    assert best_order(pair, (3, 1)) == 3
    assert best_order(token, (1, 2, 3)) == 1
    silent = replace(pair, calibration=replace(pair.calibration, activation=torch.zeros_like(pair.calibration.activation)))
    assert best_order(silent, (2, 3)) == 2, "where none can be told, the first"


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_unit_of_nothing_is_not_explained(order: int) -> None:
    assert abs(pearson(order, random_unit)) < 0.1


def test_values_by_hand() -> None:
    ids = torch.tensor([[1, 3, 2, 3], [1, 3, 4, 3], [5, 3, -1, -1]])
    activation = torch.tensor([[0.0, 9.0, 0.0, 1.0], [2.0, 7.0, 0.0, 2.0], [0.0, 3.0, 99.0, 99.0]])
    counted = ids >= 0
    counted[2, 0] = False
    one = fitted(ids, activation, counted, 1)
    assert dict(zip(one.tables[0].runs[:, 0].tolist(), one.tables[0].values.tolist(), strict=True)) == pytest.approx(
        {1: 1.0, 2: 0.0, 3: (9 + 1 + 7 + 2 + 3) / 5, 4: 0.0}
    )
    assert one.other == pytest.approx(0.0)  # the median of 0, 0, 1 and 4.4 is the lower of the middle two
    two = fitted(ids, activation, counted, 2)
    assert {
        tuple(run): value for run, value in zip(two.tables[1].runs.tolist(), two.tables[1].values.tolist(), strict=True)
    } == {
        (1, 3): 8.0,
        (2, 3): 1.0,
        (4, 3): 2.0,
        (5, 3): 3.0,
        (3, 2): 0.0,
        (3, 4): 0.0,
    }
    # behind a new token: the mean over the tokens seen before it, each once; 1 was seen behind nothing only
    found = two.predict(torch.tensor([[8, 3, 8, 1, 3, 3, 1, 9]]))[0]
    assert found.tolist() == pytest.approx([0.0, 3.5, 0.0, 1.0, 8.0, 3.5, 1.0, 0.0])


def test_texts_name_what_is_there() -> None:
    examples = examples_of(bigram_unit)
    assert TableExplainer(2, name).explain(examples).text == "active at t1 t3 (10.0)"
    assert TableExplainer(1, name).explain(examples_of(token_unit)).text == "active at t3 (10.0)"
    # the pair is named for 8 against 3.5 by the token alone; behind another token it predicts no more than that
    ids = torch.tensor([[1, 3, 2, 3, 5, 4, 4, 4]])
    found = fitted(ids, torch.tensor([[0.0, 8.0, 0.0, 3.0, 2.6, 2.6, 2.6, 2.6]]), torch.ones(1, 8, dtype=torch.bool), 2)
    assert found.text(name) == "active at t1 t3 (8.0), t3 (5.5), t4 (2.6), t5 (2.6)"
    weak = fitted(torch.tensor([[1, 2]]), torch.tensor([[0.1, 1.2]]), torch.ones(1, 2, dtype=torch.bool), 1)
    assert weak.text(name) == "weakly active at t2 (1.2)"
    silent = fitted(torch.tensor([[1, 2]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 2)
    assert silent.text(name) == "no token that it was seen at makes it active"


def test_texts_alone_predict_nothing() -> None:
    with pytest.raises(Refusal, match="it is text alone; use a LanguageSimulator"):
        ByRule().simulate(Explanation("names of ships"), torch.tensor([[1, 2]]))
