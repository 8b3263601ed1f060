"""Words with several labels: which are asked for, and that the planted factor is found by rows that do not judge it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.judging import Judging
from microtome.factors.scaling import Scaling
from microtome.factors.senses import Asked, ambiguous, sense_findings, sense_rows, senses
from microtome.probes.words import LabelledWords
from microtome.store import write_table

WIDTH, UNITS, PLANTED = 24, 16, 5
EARLY, LATE = Site("resid_pre", 0), Site("resid_pre", 1)


def words_of(labels: dict[str, tuple[int, int]]) -> LabelledWords:
    """Occurrences of words with so many of each of two labels, a document for every ten."""
    kinds = list(labels)
    rows = [(kind, y) for kind, word in enumerate(kinds) for y in (0, 1) for _ in range(labels[word][y])]
    kind, y = torch.tensor(rows).unbind(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    number = torch.arange(len(rows))
    return LabelledWords(
        text=number, first=number, last=number, y=y[order], document=number // 10, half=number // 10 % 2, kind=kind[order],
        classes=("noun", "verb"), words=tuple(kinds[each].title() for each in kind[order].tolist()), missed=0, leading=0, rare={},
    )  # fmt: skip


def dictionary_of() -> Dictionary:
    directions = normalize(torch.randn(UNITS, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)
    encoder = Encoder(directions.T[None].clone(), torch.zeros(UNITS), Above(torch.full((UNITS,), 1.0)))
    scaling = Scaling(torch.zeros(2, WIDTH), torch.ones(2), torch.full((2,), torch.inf))
    sites = (EARLY, LATE)
    return Dictionary("planted", "shared", sites, sites, encoder, scaling, directions[None], torch.zeros(1, WIDTH))


def states_of(dictionary: Dictionary, y: torch.Tensor) -> dict[Site, torch.Tensor]:
    """At the late site verbs have 4 of the planted factor; at the early one nothing tells them."""
    noise = torch.randn(2, len(y), WIDTH, generator=torch.Generator().manual_seed(2))
    own = dictionary.directions[0, PLANTED]
    return {EARLY: noise[0], LATE: noise[1] + 4 * y[:, None].float() * own}


def test_words_are_asked_for_that_have_two_labels_often_enough() -> None:
    words = words_of({"left": (60, 50), "run": (200, 300), "seldom": (90, 29), "noun": (80, 0)})
    asked = ambiguous(words)
    assert [each.word for each in asked] == ["run", "left"]
    run, left = asked
    assert len(run.rows) == 240, "120 of each label"
    assert len(left.rows) == 110
    for each in asked:
        assert {words.words[row].casefold() for row in each.rows.tolist()} == {each.word}
        assert bool((each.rows.diff() > 0).all())
    assert torch.equal(ambiguous(words)[0].rows, run.rows)
    assert not torch.equal(ambiguous(words, seed=1)[0].rows, run.rows)


def test_the_planted_factor_is_found_where_it_is(tmp_path: Path) -> None:
    words, dictionary = words_of({"left": (60, 60)}), dictionary_of()
    (asked,) = ambiguous(words)
    found = [(asked.word, each) for each in senses(dictionary, words, asked, states_of(dictionary, words.y[asked.rows]))]
    path = write_table(tmp_path, "senses", "test", sense_rows(dictionary, found, "main"))
    rows = {(row["site"], row["method"]): row for row in pq.read_table(path).to_pylist()}
    best = rows["", "factor"]
    assert (best["unit"], best["at"], best["chosen"]) == (f"factors@planted/{PLANTED}", str(LATE), 1.0)
    assert best["auroc"] > 0.95
    assert rows[str(LATE), "factor"]["auroc"] > 0.95
    assert rows[str(EARLY), "factor"]["auroc"] < 0.7
    assert best["auroc"] > rows["", "random direction"]["auroc"]
    assert rows["", "majority"]["f1"] < 0.8
    assert (best["word"], best["label"], best["positives"], best["occurrences"]) == ("left", "noun", 60, 120)
    (finding,) = sense_findings(dictionary, found)
    assert finding.subject == f"factors@planted/{PLANTED}"
    assert finding.value == pytest.approx(best["auroc"])
    assert finding.control == max(rows["", method]["auroc"] for method in ("coordinate", "component", "random direction"))


def test_where_nothing_tells_a_label_nothing_is_found() -> None:
    words, dictionary = words_of({"left": (60, 60)}), dictionary_of()
    (asked,) = ambiguous(words)
    drawn = words.y[asked.rows][torch.randperm(len(asked.rows), generator=torch.Generator().manual_seed(7))]
    ((_, sense),) = [(asked.word, each) for each in senses(dictionary, words, asked, states_of(dictionary, drawn))]
    assert sense.anywhere["factor"].scores.auroc < 0.7
    assert sense.anywhere["factor"].in_sample > sense.anywhere["factor"].scores.auroc


def test_too_few_documents_are_refused_and_the_reason_is_a_row() -> None:
    words, dictionary = words_of({"left": (60, 60)}), dictionary_of()
    rows = torch.arange(20)
    few = Asked("left", rows)
    with pytest.raises(Refusal, match="documents"):
        senses(dictionary, words, few, states_of(dictionary, words.y[rows]))
    (row,) = sense_rows(dictionary, [("left", "there are 2 documents")], "main").to_pylist()
    assert (row["word"], row["undefined"], row["auroc"]) == ("left", "there are 2 documents", None)
    assert not list(sense_findings(dictionary, [("left", "there are 2 documents")]))


def test_a_named_word_is_asked_for_and_one_without_two_labels_is_refused() -> None:
    words = words_of({"left": (60, 50), "seldom": (90, 29), "noun": (80, 0)})
    assert [each.word for each in ambiguous(words, named=("Seldom",))] == ["seldom"]
    assert [each.word for each in ambiguous(words)] == ["left"]
    for missing in ("noun", "absent"):
        with pytest.raises(Refusal, match=missing):
            ambiguous(words, named=("left", missing))


def test_words_are_asked_for_of_labelled_text_only() -> None:
    with pytest.raises(Refusal, match="--labels FILE"):
        Judging((dictionary_of(),), words=("left",))
