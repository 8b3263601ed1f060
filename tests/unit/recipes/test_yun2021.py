"""The recipe of Yun et al.: rules and tags say what they should, planted factors are found, and conclusions hold where planted and nowhere else."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microtome.core import CONTENT
from microtome.model import Model, wrap
from microtome.probes import LabelledText, average_precision
from recipes.claims import Claim, Estimate, share_of
from recipes.yun2021 import _as_well, claims, describe
from recipes.yun2021_measures import RANDOM, SHUFFLED, THEIRS, Found, Size, measure
from recipes.yun2021_patterns import PATTERNS, average_precision_of, matched, places, with_patterns
from recipes.yun2021_senses import ambiguous, occurrences
from recipes.yun2021_templates import FAMILIES, ORIGINAL, UNRELATED, sentences
from recipes.yun2021_text import Codes, States, mixed, passages, read_text, states_of, untagged
from tests import toys

LINES = (
    "The/at work/nn was/bedz quickly/rb built/vbn in/in Boston/np ,/, Ohio/np ./.",
    "They/ppss work/vb (/( see/vb 40/cd men/nns )/) and/cc old/jj ,/, warm/jj houses/nns ./.",
    "He/pps left/vbd his/pp$ left/jj hand/nn of/in the/at end/nn of/in a/at line/nn ./.",
    "We/ppss saw/vbd apples/nns ,/, pears/nns and/cc plums/nns in/in 1841/cd and/cc 1850/cd ./.",
    "''/'' ,/, he/pps said/vbd ./.",
    "She/pps left/vbd on/in the/at left/nr side/nn ;/. they/ppss left/vbd us/ppo ./.",
)
TINY = Size(
    passages=30, examples=2, speeches=4, words=20, units=16, l0=3, passes=1, turns=1, asked=2, fewest=6, most=12, outer=2, top=4, places=4,
    important=5, looked=2, contexts=1, coloured=1, judged=400,
)  # fmt: skip


@pytest.fixture(scope="module")
def brown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brown")
    for letter in "ahjkl":
        for number in range(1, 9):
            (folder / f"c{letter}{number:02}").write_text("\n".join(LINES[number % 3 :] + LINES[: number % 3]))
    return folder


@pytest.fixture(scope="module")
def model() -> Model:
    module = toys.llama()
    module.config.max_position_embeddings = 512
    return wrap(module, toys.decoder_tokenizer(), name="toy")


@pytest.fixture(scope="module")
def states(model: Model, brown: Path) -> States:
    return states_of(model, read_text(model, passages(brown, 20)))


def words_of(pattern: str, text: LabelledText) -> list[str]:
    (rule,) = (each for each in PATTERNS if each.name == pattern)
    return [word for word, here in zip(text.words, rule.holds(text), strict=True) if here]


def test_rules_mark_the_words_of_their_patterns(brown: Path) -> None:
    (first, *_) = [each for each in passages(brown, 1000) if each.document == "ca03"]
    found = {pattern.name: words_of(pattern.name, first) for pattern in PATTERNS}
    assert found["city, state"] == ["Boston", ",", "Ohio"]
    assert found["passive"] == ["was", "quickly", "built"]
    assert found["numbers in brackets"] == ["(", "see", "40", "men", ")"]
    assert found["adjectives in a row"] == ["old", ",", "warm"]
    assert found["nouns in a list"] == ["apples", ",", "pears", "and", "plums"]
    assert found["years near each other"] == ["1841", "and", "1850"]
    assert found["speech, who said it"] == ["''", ",", "he", "said"]
    assert found["an of-phrase in another"] == ["of", "the", "end", "of", "a", "line"]
    assert not any(words_of(pattern.name, untagged("speech", "Nothing was (40) done, said he.")) for pattern in PATTERNS[2:6])


def test_rare_patterns_get_passages_and_no_more_than_it_takes(brown: Path) -> None:
    several = passages(brown, 8)
    none, some = with_patterns(several, 5, 0), with_patterns(several, 5, 6)
    assert len(none) == 5
    for pattern in PATTERNS:
        assert sum(any(pattern.holds(each)) for each in some) >= 6
    assert set(map(id, none)) <= set(map(id, some))
    assert len(some) < len(several)


def test_every_token_knows_its_word_and_sentence(model: Model, states: States) -> None:
    text = states.text
    for window in (0, 7):
        whole = "".join(
            model.tokenizer.backend_tokenizer.decode([token])
            for token in text.batch.ids[window, text.word[window] == 0].tolist()
        )
        assert whole.strip() == text.passages[window].words[0]
    mine = states.rows.window == 0
    ends = [word for word in text.passages[0].words if word in {".", ";"}]
    assert len(states.sentence[mine].unique()) == len(ends)
    row = int((mine & (states.word == 2)).nonzero()[0, 0])
    assert f"[[{text.passages[0].words[2]}]]" in states.context(row)


def test_text_in_another_order_has_the_same_tokens_with_their_words(states: States) -> None:
    text, other = states.text, mixed(states.text)
    content = text.batch.counted(CONTENT)
    assert torch.equal(text.batch.ids[~content], other.batch.ids[~content])
    moved = 0
    for window in range(4):
        before, after = (
            sorted(zip(each.batch.ids[window].tolist(), each.word[window].tolist(), strict=True)) for each in (text, other)
        )
        assert before == after
        moved += int((text.batch.ids[window] != other.batch.ids[window]).sum())
    assert moved > 20


def sparse(x: Tensor) -> Codes:
    row, unit = (x > 0).nonzero(as_tuple=True)
    return Codes.of(row, unit, x[row, unit], *x.shape)


def test_average_precision_and_importance_are_those_of_dense_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 7, generator=generator)
    x = torch.where(torch.rand(300, 7, generator=generator) < 0.2, x, 0.0)
    y = torch.rand(300, generator=generator) < 0.3
    every = torch.ones(300, dtype=torch.bool)
    torch.testing.assert_close(average_precision_of(sparse(x), y, every), average_precision(x, y)[0])
    half = torch.arange(300) % 2 == 0
    torch.testing.assert_close(average_precision_of(sparse(x).only(half), y, half), average_precision(x[half], y[half])[0])
    torch.testing.assert_close(sparse(x).importance(9), x.topk(9, dim=0).values.mean(0))
    torch.testing.assert_close(sparse(x).importance(100), x.topk(100, dim=0).values.mean(0))


def planted(states: States, pattern: str, place: int, hits: float) -> list[Codes]:
    """Noise at three places, and at one a factor, number 3, of so large a share of the pattern's tokens."""
    generator = torch.Generator().manual_seed(1)
    (rule,) = (each for each in PATTERNS if each.name == pattern)
    y = places(rule, states) >= 0
    found = []
    for number in range(3):
        x = torch.rand(len(y), 8, generator=generator)
        x = torch.where(torch.rand(len(y), 8, generator=generator) < 0.1, x, 0.0)
        if number == place:
            x[:, 3] = torch.where(y & (torch.rand(len(y), generator=generator) < hits), 1 + x[:, 3], x[:, 3])
        found.append(sparse(x))
    return found


def test_the_factor_of_a_pattern_is_found_where_it_is(states: States) -> None:
    found = matched(PATTERNS, states, planted(states, "passive", 1, 0.7), top=5, fewest=3)
    own, other = found["passive"], found["nouns in a list"]
    assert own.best == 1
    assert own.units[1] == 3
    assert own.share[1].value == 1
    assert own.along[0] < 0.7
    assert own.recall.value > 0.9
    assert float(own.tenths[0]) == 1 > float(own.tenths[9])
    assert own.base < own.precision.value < 1
    assert own.precision.value < 1, "it is active elsewhere, too"
    assert other.share[other.best].value < 0.9
    assert len({int(states.sentence[row]) for row in own.contexts}) == len(own.contexts)
    assert not matched(PATTERNS, states, planted(states, "passive", 1, 0.7), top=5, fewest=1000)


def test_words_that_are_verbs_and_not_are_those_of_the_tags(brown: Path) -> None:
    texts = passages(brown, 20)
    assert ambiguous(texts, 5, 40) == ["left", "work"]
    assert ambiguous(texts, 1, 40) == ["left"]
    assert ambiguous(texts, 5, 1000) == []
    found = occurrences(texts, "left", 10)
    assert [each.labels[0] for each in found] == ["verb"] * 10 + ["other"] * 10
    assert all(each.text[slice(*each.spans[0])] == each.words[0] for each in found)


@pytest.mark.parametrize("family", FAMILIES)
def test_sentences_are_changed_one_thing_at_a_time(family: str) -> None:
    made = sentences(family, 8, "[UNK]")
    assert {len(several) for several in made.values()} == {8}
    assert len(set(made[ORIGINAL])) == 8
    assert all("[UNK]" not in each for each in made[ORIGINAL] + made[UNRELATED])
    unknown = [name for name in made if "unknown" in name]
    assert unknown
    assert all("[UNK]" in each for name in unknown for each in made[name])
    mixed_up = made["its words in another order"]
    for own, other in zip(made[ORIGINAL], mixed_up, strict=True):
        assert sorted(re.findall(r"\w+|[^\w\s]", own)) == sorted(re.findall(r"\w+|[^\w\s]", other))


@pytest.fixture(scope="module")
def found(model: Model, brown: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    speeches = tmp_path_factory.mktemp("speeches")
    for number in range(6):
        (speeches / f"{number}.txt").write_text(
            f"Fellow citizens, in the year {1900 + number} " + "we saw the old houses of the land. " * 6
        )
    return measure(model, brown, speeches, TINY)


def said(found: Found) -> dict[str, Claim]:
    return {each.says: each for each in claims(found)}


def test_everything_is_measured_and_printed(found: Found) -> None:
    assert [each.word for each in found.senses] == ["left", "work"]
    assert set(found.patterns) == {THEIRS, "BatchTopK", RANDOM, SHUFFLED}
    assert len({tuple(one.pattern.name for one in several) for several in found.patterns.values()}) == 1
    page = describe(found)
    for part in (
        "by place",
        "words: F1",
        "patterns: %",
        "levels: share",
        "What differs from the paper",
        "as remembered, to be verified",
    ):
        assert part in page
    assert "97.2 / 95.8 /" in page
    assert all(each.control != "-" for each in claims(found)), "beside every number stands its control"


def test_claims_of_patterns_hold_where_planted_and_nowhere_else(found: Found) -> None:
    def with_shares(own: tuple[float, ...], others: tuple[float, ...]) -> Found:
        patterns = {}
        for name, several in found.patterns.items():
            shares = own if name == THEIRS else others
            made = tuple(share_of(torch.arange(100) < 100 * each) for each in shares)
            patterns[name] = tuple(
                dataclasses.replace(each, share=made, best=len(made) - 1, precision=made[0]) for each in several
            )
        return dataclasses.replace(found, patterns=patterns)

    places_of = len(found.depths)
    high, low = (0.1,) + (0.2,) * (places_of - 2) + (0.9,), (0.1,) * places_of
    there, nowhere = said(with_shares(high, low)), said(with_shares(low, low))
    for text in (
        "there are factors of patterns of sentences",
        "patterns come in the upper layers: more in the last third than before",
    ):
        assert there[text].agrees
        assert not nowhere[text].agrees
    assert not there["a factor's activity means its pattern"].agrees


def test_claims_of_sentences_and_levels_follow_their_numbers(found: Found) -> None:
    some = {name: torch.linspace(4.0, 5.0, 8) for name in ("as it is", "synonyms", "all of them unknown", UNRELATED)}
    falls = some | {"all of them unknown": torch.zeros(8), UNRELATED: torch.zeros(8)}
    assert found.templates
    first = found.templates[0]
    for codes, agrees in ((some, False), (falls, True)):
        own = said(dataclasses.replace(found, templates=(dataclasses.replace(first, codes=codes),)))
        assert [each.agrees for text, each in own.items() if "falls as it is destroyed" in text] == [agrees]
    assert abs(sum(found.levels.shares().values()) - 1) < 1e-9
    same = dataclasses.replace(found.levels, halves=(found.levels.whole, found.levels.whole))
    assert same.agreement()[0] == 1


def test_what_an_interval_leaves_open_is_not_decided() -> None:
    whole = Estimate(0.95, 0.9, 0.98)
    assert _as_well(Estimate(0.96, 0.94, 0.97), whole, 0.5) is True
    assert _as_well(Estimate(0.94, 0.9, 0.97), whole, 0.5) is None
    assert _as_well(Estimate(0.85, 0.8, 0.9), whole, 0.5) is False
