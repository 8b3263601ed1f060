"""Lists of words: files, the words they are compared with, areas by counting pairs, shuffles within strata."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.vocabulary.lists import WordList, read_words, score, scoring, shuffled, tell_apart, word_list
from microtome.vocabulary.subject import Subject, subject_of
from microtome.vocabulary.words import spelling
from tests.toys import toy_decoder

NOUNS = ["river", "Stone", "garden", "letter", "engine"]
VERBS = ["holds", "finds", "leaves", "carries", "breaks"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of(toy_decoder())


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"
        path.write_text(text)
        return path

    return write


def test_files_are_one_class_two_by_sign_or_two(written: Callable[[str], Path]) -> None:
    assert read_words([written("good\n\n fine \n")]) == (["good", "fine"], [])
    assert read_words([written("good\t1\nbad\t-2.5\nmeh\t0\n")]) == (["good"], ["bad"])
    assert read_words([written("good"), written("bad")]) == (["good"], ["bad"])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["good\t1\nbad"], "bad has no number and others have"),
        (["good\tmuch"], "much is no number"),
        ([" \n"], "it is empty"),
        (["good", "Good"], "good is in both classes"),
        (["a", "b", "c"], "two classes at most"),
    ],
)
def test_files_that_say_nothing_clear_are_refused(texts: list[str], says: str, written: Callable[[str], Path]) -> None:
    with pytest.raises(Refusal, match=says):
        read_words([written(text) for text in texts])


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="there is no such file"):
        read_words([tmp_path / "none.txt"])


def test_two_classes_are_one_token_a_word_behind_a_space(subject: Subject) -> None:
    words = word_list("x", [*NOUNS, "RIVER", "notatoken"], VERBS, subject)
    listed = [subject.texts[token] for token in words.tokens[words.listed].tolist()]
    assert listed == [f" {noun.casefold()}" for noun in NOUNS]
    assert int((~words.listed).sum()) == 5
    assert words.asked == 11


def test_one_class_is_compared_with_its_nearest_words_by_rank_of_id_and_of_length(subject: Subject) -> None:
    words = word_list("x", NOUNS, [], subject)
    assert int(words.listed.sum()) == 5
    of = {spelling(str(subject.texts[token])) for token in words.tokens[~words.listed].tolist()}
    assert len(of) == int((~words.listed).sum())
    assert not of & {noun.casefold() for noun in NOUNS}
    assert all(word.isalpha() for word in of)
    counts = torch.bincount(words.stratum)
    assert bool((counts == counts[0]).all())
    assert torch.equal(words.stratum[words.listed], torch.arange(5))


def test_too_few_words_are_refused(subject: Subject) -> None:
    with pytest.raises(Refusal, match=r"3 of its 4 words are single tokens of toy-llama; list more: 4 of a class"):
        word_list("x", [*NOUNS[:3], "notatoken"], [], subject)


def test_areas_are_shares_of_pairs_with_ties_as_half() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 6, (4, 17), generator=generator).float()
    classes = torch.zeros(3, 17)
    for row in classes:
        row[torch.randperm(17, generator=generator)[:5]] = 1
    found = tell_apart(scores, classes)
    for draw, row in enumerate(classes.bool()):
        for vector, values in enumerate(scores):
            pairs = [(a > b) + 0.5 * (a == b) for a in values[row].tolist() for b in values[~row].tolist()]
            assert float(found[draw, vector]) == pytest.approx(sum(pairs) / len(pairs))


def test_shuffles_keep_the_classes_of_each_stratum_and_reach_every_word() -> None:
    stratum = torch.tensor([0, 1, 2, 0, 0, 1, 1, 2, 2, 2])
    listed = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 0, 0]).bool()
    words = WordList("x", torch.arange(10), listed, stratum, 4, "others")
    drawn = shuffled(words, 4000, seed=3)
    for number, count in enumerate((1, 1, 2)):
        mine = drawn[:, stratum == number]
        assert bool((mine.sum(1) == count).all())
        expected = torch.full((mine.shape[1],), count / mine.shape[1])
        torch.testing.assert_close(mine.mean(0), expected, atol=0.04, rtol=0)
    assert torch.equal(drawn, shuffled(words, 4000, seed=3))


def test_turned_words_keep_lengths_and_angles_on_average_and_shuffles_are_around_one_half(subject: Subject) -> None:
    words = word_list("x", NOUNS, VERBS, subject)
    ready = scoring(words, subject.write, 200, seed=1)
    torch.testing.assert_close(ready.columns, subject.write.matrix[:, torch.searchsorted(subject.write.tokens, words.tokens)])
    products = torch.einsum("tdw,tdv->twv", ready.turned, ready.turned).mean(0)
    expected = ready.columns.T @ ready.columns
    assert float((products - expected).norm() / expected.norm()) < 0.1
    rows = torch.randn(600, 24, generator=torch.Generator().manual_seed(4))
    found = score(rows, ready)
    whole = tell_apart(rows @ ready.columns, ready.lists)
    torch.testing.assert_close(found.areas, whole[0])
    torch.testing.assert_close(found.pooled_shuffled, (2 * whole[1:] - 1).abs().mean(1))
    assert float(found.shuffled.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(found.pooled_turned.mean()) == pytest.approx(
        found.pooled, rel=0.2
    )  # directions without meaning are like turned ones
