"""Neuron graphs of units that are functions of tokens: exact tries, and what is left out, masked and replaced."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from microtome.core import Refusal
from microtome.explain import FOOTE, ByRule, GraphExplainer, Growing, NeuronGraph, firing, grown, near, scores, seen_there
from microtome.explain.graphs import ANY, Pattern
from tests.unit.explain.planted import bigram_unit, examples_of, name, random_unit, token_unit

MASK = 99
NAN = float("nan")


def all_others(tokens: Sequence[int], place: int) -> list[int]:
    return [token for token in range(6) if token != tokens[place]]


def none(tokens: Sequence[int], place: int) -> list[int]:
    return []


def skipping_unit(ids: Tensor) -> Tensor:
    """4 at token 3 with token 1 two before it, and 0.4 at token 3 elsewhere."""
    earlier = torch.nn.functional.pad(ids, (2, 0), value=-1)[:, :-2]
    return 0.4 * (ids == 3) + 3.6 * ((ids == 3) & (earlier == 1))


@pytest.mark.parametrize("unit", [token_unit, bigram_unit])
def test_units_of_runs_are_found_whole(unit: object) -> None:
    examples = examples_of(unit)  # pyright: ignore[reportArgumentType]
    explanation = GraphExplainer(unit, none, MASK, name).explain(examples)  # pyright: ignore[reportArgumentType]
    assert scores(explanation, ByRule(), examples, draws=0).pearson == pytest.approx(1)
    part = examples.valid
    found = firing(examples.scaled(part), ByRule().simulate(explanation, part.ids), part.counted)
    assert (found.precision, found.recall, found.f1) == (1, 1, 1)


def test_the_trie_is_exact() -> None:
    assert grown(examples_of(token_unit), token_unit, none, MASK).ends() == {(3,): 10.0}
    assert grown(examples_of(bigram_unit), bigram_unit, none, MASK).ends() == {(1, 3): 10.0}
    assert grown(examples_of(skipping_unit), skipping_unit, none, MASK).ends() == {(1, ANY, 3): 10.0}


def test_substitutes_say_where_the_unit_is_silent_and_where_it_is_not() -> None:
    def either(ids: Tensor) -> Tensor:
        before = torch.nn.functional.pad(ids, (1, 0), value=-1)[:, :-1]
        return (ids == 3) * (4.0 * (before == 1) + 3.0 * (before == 2))

    ends = grown(examples_of(either), either, all_others, MASK).ends()
    assert ends[1, 3] == 10.0
    assert ends[2, 3] == pytest.approx(7.5)
    assert all(value == 0 for tokens, value in ends.items() if tokens not in {(1, 3), (2, 3)})
    assert {tokens for tokens in ends if tokens[-1] == 3} == {(token, 3) for token in range(6)}
    assert {tokens[-1] for tokens in ends} == set(range(6))


def test_substitutes_that_beat_the_unit_itself_are_brought_to_the_scale() -> None:
    def stronger(ids: Tensor) -> Tensor:
        return 1.0 * (ids == 3) + 50.0 * (ids == 90)

    ends = grown(examples_of(stronger), stronger, lambda tokens, place: [90], MASK).ends()
    assert ends == {(3,): 10.0, (90,): 10.0}


def test_the_longest_match_counts_and_tokens_come_before_any() -> None:
    graph = NeuronGraph(
        (
            Pattern((3,), 2.0),
            Pattern((1, ANY, 3), 8.0),
            Pattern((1, 2, 3), 4.0),
            Pattern((1, 2, 3), 5.0),
            Pattern((7, 1, ANY, 3), 6.0),
        )
    )
    ids = torch.tensor([[1, 5, 3, 0, 1, 2, 3, 3], [7, 1, 2, 3, 7, 1, 4, 3], [-1, -1, 3, 1, 3, 2, 3, -1]])
    assert graph.predict(ids).tolist() == [
        [0, 0, 8, 0, 0, 0, 4.5, 2],
        [0, 0, 0, 6, 0, 0, 0, 6],
        [0, 0, 2, 0, 2, 0, 2, 0],
    ]
    assert graph.ends()[1, 2, 3] == 4.5
    assert graph.text(name) == "active at the end of t1 * t3 (8.0), t7 t1 * t3 (6.0), t1 t2 t3 (4.5)"


def test_a_unit_of_nothing_is_not_explained() -> None:
    def other_noise(ids: Tensor) -> Tensor:
        return torch.rand(ids.shape, generator=torch.Generator().manual_seed(len(ids))) ** 4

    examples = examples_of(random_unit)
    graph = GraphExplainer(other_noise, all_others, MASK, name).explain(examples)
    assert abs(scores(graph, ByRule(), examples, draws=0).pearson) < 0.1


def test_excerpts_that_no_short_text_keeps_are_lost() -> None:
    def far(ids: Tensor) -> Tensor:
        earlier = torch.nn.functional.pad(ids, (9, 0), value=-1)[:, :-9]
        return 4.0 * ((ids == 3) & (earlier == 1))

    examples = examples_of(far)
    short = grown(examples, far, none, MASK, Growing(longest=8))
    assert (short.lost, short.patterns) == (min(10, int(examples.train.active.sum())), ())
    assert short.text(name) == "no short text makes it active"
    whole = grown(examples, far, none, MASK, Growing(longest=16))
    assert whole.ends() == {(1, *[ANY] * 8, 3): 10.0}


def test_the_share_that_matters_is_a_setting() -> None:
    """Masking the token before takes 0.7 of the activation away: enough for one setting, and not for the published one."""

    def helped(ids: Tensor) -> Tensor:
        before = torch.nn.functional.pad(ids, (1, 0), value=-1)[:, :-1]
        return (ids == 3) * (1.2 + 2.8 * (before == 1))

    examples = examples_of(helped)
    assert set(grown(examples, helped, none, MASK, Growing(important=0.6)).ends()) == {(1, 3)}
    assert set(grown(examples, helped, none, MASK, FOOTE).ends()) == {(3,)}


def test_patterns_are_brought_to_what_training_excerpts_have() -> None:
    """Token 3 alone keeps the activation in short texts, and in excerpts it is there a part of the time only."""
    sometimes = torch.zeros(7000, dtype=torch.bool)
    sometimes[::3] = True

    def unit(ids: Tensor) -> Tensor:
        if ids.shape[1] < 32:
            return 4.0 * (ids == 3)
        return 4.0 * (ids == 3) * sometimes[: ids.numel()].view(ids.shape)

    examples = examples_of(unit)
    part, scaled = examples.train, examples.scaled(examples.train)
    assert grown(examples, unit, none, MASK, FOOTE).ends() == {(3,): 10.0}
    mean = float(scaled[part.counted & (part.ids == 3)].mean())
    assert 2 < mean < 8
    assert grown(examples, unit, none, MASK).ends() == {(3,): pytest.approx(mean)}
    # a pattern that no excerpt has keeps its value, and tokens with NaN are left out
    graph = NeuronGraph((Pattern((3,), 2.0), Pattern((9, 3), 5.0)))
    found = graph.refitted(torch.tensor([[3, 1, 3, 3]]), torch.tensor([[4.0, 7.0, NAN, 6.0]])).ends()
    assert found == {(3,): 5.0, (9, 3): 5.0}


def test_what_follows_is_kept_for_models_that_read_it() -> None:
    def ahead(ids: Tensor) -> Tensor:
        after = torch.nn.functional.pad(ids, (0, 1), value=-1)[:, 1:]
        return 4.0 * ((ids == 3) & (after == 2))

    examples = examples_of(ahead)
    assert grown(examples, ahead, none, MASK).lost > 0
    kept = grown(examples, ahead, none, MASK, Growing(following=2))
    part = examples.train.take(examples.train.active)
    # at the end of an excerpt nothing is known of what follows
    assert kept.lost == int((part.peak[1] == part.ids.shape[1] - 1).sum())
    assert set(kept.ends()) == {(3,)}


def test_settings_outside_of_their_range_are_refused() -> None:
    wrong = (lambda: Growing(keep=1.5), lambda: Growing(excerpts=0), lambda: Growing(following=-1))
    for make in wrong:
        with pytest.raises(Refusal, match="shares are from 0 to 1"):
            make()


def test_near_tokens_are_those_of_largest_cosine() -> None:
    embedding = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [-1.0, 0.0], [3.0, 1.0]])
    assert list(near(embedding, 2)([0, 3], 0)) == [1, 4]
    assert list(near(embedding, 9, allowed={2, 3})([0, 3], 0)) == [2, 3]
    assert list(near(embedding, 9, allowed={2, 3})([0, 3], 1)) == [2]


def test_tokens_of_the_same_place_are_counted() -> None:
    found = seen_there([torch.tensor([[1, 5, 2, -1], [1, 6, 2, 1]]), torch.tensor([[1, 6, 3, 1], [1, 7, 2, 0]])], count=2)
    assert found([1, 9, 2], 1) == [5, 6]  # 5, 6 and 7 once each: the lower ids
    assert found([1, 9], 1) == [6, 5]  # at the end: 6 twice
    assert found([1, 6], 1) == [5, 7]
    assert found([1, 6], 0) == ()
    assert found([8, 6], 1) == []
