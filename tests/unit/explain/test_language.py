"""Language models as callables: prompts that say what they must, and answers that are bad in every way met so far."""

import math

import pytest
import torch
from torch import Tensor

from microtome.explain import NOTHING, Answer, Explanation, LanguageExplainer, LanguageSimulator, scores
from microtome.explain.language import explaining_prompt, predictions, simulating_prompt
from tests.unit.explain.planted import examples_of, name, token_unit

NAN = math.nan
SAID = Explanation("token 3")


def same(one: list[float], other: list[float]) -> bool:
    return one == pytest.approx(other, nan_ok=True)


def test_the_prompt_shows_tokens_with_their_levels() -> None:
    examples = examples_of(token_unit)
    prompt = explaining_prompt(examples, name, most=2)
    part = examples.train.take(examples.train.active)
    row = int(part.peak[0].argsort(descending=True, stable=True)[0])
    first = "".join(
        f"t{token}\t{10 * (token == 3 and counted)}\n"
        for token, counted in zip(part.ids[row].tolist(), part.counted[row].tolist(), strict=True)
    )
    assert first in prompt
    assert "Active at: t3 (10)\n" in prompt
    assert prompt.count("\tt") == 0
    assert prompt.count("\t10\n") >= 2


def test_names_stay_on_their_line() -> None:
    prompt = simulating_prompt(SAID, [1, 2], lambda token: "\n" if token == 1 else "a\tb")
    assert "1\t\\n\n2\ta\\tb\n" in prompt
    assert "token 3" in prompt


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Explanation: words of the sea", "words of the sea"),
        ("  explanation :\n\n  words of the sea.\nAnd more.", "words of the sea."),
        ('"words of the sea"', "words of the sea"),
        ("**Explanation:** words of the sea", "words of the sea"),
        ("Explanation", ""),
        ("\n \n", ""),
        ("...", ""),
    ],
)
def test_sentences_are_found(answer: str, said: str) -> None:
    examples = examples_of(token_unit)
    assert LanguageExplainer(lambda _: answer, name).explain(examples).text == said
    assert LanguageExplainer(lambda _: Answer(answer), name).explain(examples).text == said


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("1\t0\n2\t7\n3\t10", [0, 7, 10]),
        ("Sure! Here are 3 predictions:\n1\t0\n2\t7\n3\t10\nI hope this helps.", [0, 7, 10]),
        ("1: 0\n2. 7\n3) 10", [0, 7, 10]),
        ("1\t the\t0\n2\t sea\t7.5\n3\t10/10", [0, 7.5, 10]),
        ("3\t10\n1\t0", [0, NAN, 10]),
        ("1\t-4\n2\t12\n3\t1e9", [0, 10, NAN]),
        ("1\t5\n1\t9\n2\tvery\n9\t3\n0\t3", [5, NAN, NAN]),
        ("1\tNaN\n2\tinf\n3\t", [NAN, NAN, NAN]),
        ("12\n3", [NAN, NAN, NAN]),
        ("", [NAN, NAN, NAN]),
        ("I cannot do that.", [NAN, NAN, NAN]),
        ("1\t5\r\n2\t6\r\n3\t7", [5, 6, 7]),
    ],
)
def test_numbers_are_read_however_they_are_written(answer: str, found: list[float]) -> None:
    assert same(predictions(answer, 3), found)


def test_the_expected_value_is_over_numbers_on_the_scale() -> None:
    half = {"10": math.log(0.5), " 0": math.log(0.25), "x": math.log(0.2), "11": math.log(0.05)}
    pieces = (("1", {}), ("\t", {}), ("10", half), ("\n", {}), ("2", {}), ("\t", {}), ("4", {"a": -1.0}))
    answer = Answer("1\t10\n2\t4", pieces)
    assert same(predictions(answer, 2), [10 * 0.5 / 0.75, 4.0])


def test_probabilities_of_parts_of_numbers_or_of_another_text_are_left_aside() -> None:
    split = (("1", {}), ("\t", {}), ("1", {"1": -0.1, "2": -2.0}), ("0", {"0": 0.0}))
    assert predictions(Answer("1\t10", split), 1) == [10.0]
    other = (("1", {}), ("\t", {}), ("3", {"9": 0.0}))
    assert predictions(Answer("1\t4", other), 1) == [4.0]
    broken = (("1", {}), ("\t", {}), ("4", {"9": NAN, "4": -math.inf}))
    assert predictions(Answer("1\t4", broken), 1) == [4.0]


def obedient(prompt: str) -> str:
    """Answers 8 at t3."""
    lines = prompt.partition("nothing else.\n\n")[2].strip().split("\n")
    return "\n".join(f"{line.split(chr(9))[0]}\t{8 * line.endswith('t3')}" for line in lines)


def test_a_simulator_that_does_as_told_scores_one() -> None:
    examples = examples_of(token_unit)
    found = scores(SAID, LanguageSimulator(obedient, name), examples, draws=0)
    assert found.pearson == pytest.approx(1)
    assert found.answered == 1


def test_a_simulator_that_answers_half_says_so() -> None:
    examples = examples_of(token_unit)

    def half(prompt: str) -> str:
        return "\n".join(obedient(prompt).split("\n")[:16])

    found = scores(SAID, LanguageSimulator(half, name), examples, draws=0)
    assert 0.4 < found.answered < 0.6
    assert found.pearson < 0.95


def test_padding_is_not_asked_about_and_nothing_is_asked_of_no_explanation() -> None:
    prompts: list[str] = []

    def keep(prompt: str) -> str:
        prompts.append(prompt)
        return "1\t1\n2\t2"

    ids: Tensor = torch.tensor([[3, 4, NOTHING], [5, NOTHING, NOTHING]])
    found = LanguageSimulator(keep, name).simulate(SAID, ids)
    assert found.tolist() == [[1, 2, 0], [1, 0, 0]]
    assert len(prompts) == 2
    assert "t4" in prompts[0]
    assert "t4" not in prompts[1]
    assert LanguageSimulator(keep, name).simulate(Explanation(" "), ids).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert len(prompts) == 2
