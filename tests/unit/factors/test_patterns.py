"""Patterns: planted factors are told by the question that made them, and a factor of chance by none."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.patterns import Agreement, Answers, Occurrences, agreement, answers_by_text, labelled_answers
from microtome.probes import LabelledText, aligned
from tests.toys import toy_encoder

TEXTS = [" the", " The", " running", " jumping", " 19", ",", ".", " river", " bank", " of", " a", " USA", " walked", " talked"]
WINDOWS, LENGTH = 120, 30


def _tokens(seed: int = 0) -> Occurrences:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, len(TEXTS), (WINDOWS * LENGTH,), generator=generator)
    window = torch.arange(WINDOWS).repeat_interleave(LENGTH)
    return Occurrences(ids, window, torch.arange(LENGTH).repeat(WINDOWS), window % 2)


def _before(tokens: Occurrences) -> Tensor:
    found = torch.full_like(tokens.id, -1)
    found[1:] = torch.where(tokens.window[1:] == tokens.window[:-1], tokens.id[:-1], -1)
    return found


def _found(masks: list[Tensor], tokens: Occurrences, more: list[Answers] | None = None, draws: int = 8) -> Agreement:
    row, unit = torch.stack(masks, 1).nonzero().T
    return agreement((row, unit), len(masks), tokens, [*answers_by_text(tokens, TEXTS), *(more or [])], draws=draws)


def test_planted_factors_are_told_by_what_made_them() -> None:
    tokens = _tokens()
    ids, before = tokens.id, _before(tokens)
    noise = torch.rand(len(ids), generator=torch.Generator().manual_seed(9))
    masks = [
        (ids <= 1),
        (ids == 2) | (ids == 3),
        (ids == 4),
        (before == 7) & (ids == 8),
        (before == 9),
        (tokens.position < 2) & (tokens.position > 0),
        (ids == 7) & (noise < 0.9),
        noise < 0.1,
        torch.zeros_like(ids, dtype=torch.bool),
    ]
    found = _found(masks, tokens)
    told = [found.questions[each] if each >= 0 else None for each in found.question.tolist()]
    assert told[0] == ("word", "‘the’")
    assert told[1] == ("ending", "-ng")
    assert told[2] == ("spelling", "is of digits")
    assert told[3] == ("bigram", "‘river bank’")
    assert told[4] == ("word before", "after ‘of’")
    assert told[5] == ("place", "places 1 to 1")
    assert told[6] == ("word", "‘river’")
    assert told[8] is None
    assert found.f1[:6].tolist() == pytest.approx([1.0] * 6)
    assert found.mcc[:6].tolist() == pytest.approx([1.0] * 6)
    assert 0.9 < float(found.f1[6]) < 1
    assert math.isnan(found.f1[8])
    assert bool((found.q[:5] < 0.05).all())
    assert float(found.q[7]) > 0.05
    assert found.explained().tolist() == [True] * 5 + [bool(found.q[5] < 0.05), True, False, False]
    assert found.unexplained() == pytest.approx(1 - found.explained()[:8].double().mean())


def test_scores_are_those_of_the_confirm_half_by_sklearn() -> None:
    tokens = _tokens(1)
    noise = torch.rand(len(tokens.id), generator=torch.Generator().manual_seed(2))
    mask = ((tokens.id == 7) & (noise < 0.7)) | (noise > 0.97)
    found = _found([mask], tokens)
    assert found.questions[int(found.question[0])] == ("word", "‘river’")
    mine = tokens.half == 1
    truth, active = (tokens.id == 7)[mine].numpy(), mask[mine].numpy()
    assert float(found.f1[0]) == pytest.approx(f1_score(truth, active))
    assert float(found.mcc[0]) == pytest.approx(matthews_corrcoef(truth, active))
    assert float(found.by_kind[found.kinds.index("word"), 0]) == pytest.approx(f1_score(truth, active))


def test_factors_of_chance_are_rarely_believed_and_the_control_is_as_high_as_they_are() -> None:
    tokens = _tokens(3)
    generator = torch.Generator().manual_seed(4)
    masks = [torch.rand(len(tokens.id), generator=generator) < 0.02 for _ in range(200)]
    found = _found(masks, tokens)
    assert int((found.p < 0.05).sum()) <= 20
    assert int((found.q < 0.05).sum()) <= 2
    assert float(found.mcc.mean()) == pytest.approx(float(found.control.mean()), abs=0.01)
    assert found.unexplained() == 1.0


def test_a_run_of_a_windows_own_theme_is_no_pattern_of_its_tokens() -> None:
    """A factor active all through some windows goes with those windows' words only as far as turned answers do."""
    tokens = _tokens(5)
    theme = tokens.window % 8 == 1
    ids = torch.where(theme & (tokens.position % 3 == 0), 7, tokens.id)
    mixed = Occurrences(ids, tokens.window, tokens.position, (tokens.window // 8) % 2)
    row, unit = torch.stack([theme, ids == 7], 1).nonzero().T
    found = agreement((row, unit), 2, mixed, answers_by_text(mixed, TEXTS), draws=60)
    assert found.questions[int(found.question[0])][0] in {"word", "word before", "bigram"}
    assert float(found.mcc[0]) > 0.2
    assert float(found.control[0]) > 0.8 * float(found.mcc[0])
    assert not bool(found.explained()[0])
    assert bool(found.explained()[1])


def test_labels_are_found_at_all_tokens_of_their_words() -> None:
    model = toy_encoder()
    texts = []
    for number in range(4):
        words = ("The", "river", "holds", "the", "zzxyq", "stone")
        text, spans, at = " ".join(words), [], 0
        for word in words:
            spans.append((at, at + len(word)))
            at += len(word) + 1
        texts.append(LabelledText(f"d{number}", text, words, ("AT", "NN", "VB", "AT", "FW", "NN"), tuple(spans)))
    words = aligned(model.tokenizer, texts)
    length = int(words.last.max()) + 3
    window = torch.arange(4).repeat_interleave(length)
    position = torch.arange(length).repeat(4)
    tokens = Occurrences(torch.zeros_like(window), window, position, window % 2)
    found = labelled_answers("tag", words, tokens)
    for number in range(len(words.y)):
        mine = (window == words.text[number]) & (position >= words.first[number]) & (position <= words.last[number])
        assert bool((found.answer[mine] == words.y[number]).all())
    covered = int((words.last - words.first + 1).sum())
    assert int((found.answer >= 0).sum()) == covered
    assert int((words.last > words.first).sum()) >= 4, "a word of several tokens"
    assert found.names == words.classes


def test_a_tag_explains_what_no_spelling_does() -> None:
    tokens = _tokens(6)
    hidden = torch.rand(len(tokens.id), generator=torch.Generator().manual_seed(7)) < 0.3
    tags = Answers("tag", ("VB", "NN"), torch.where(hidden, 0, 1))
    without, found = _found([hidden], tokens, draws=60), _found([hidden], tokens, [tags], draws=60)
    assert not bool(without.explained()[0])
    assert found.questions[int(found.question[0])] == ("tag", "VB")
    assert bool(found.explained()[0])


def test_what_is_asked_of_a_text_is_true_of_it() -> None:
    tokens = _tokens(8)
    found = {(each.kind, each.names[0]): each for each in answers_by_text(tokens, TEXTS)}
    capital = found["spelling", "starts with a capital"].answer
    assert torch.equal(capital == 0, torch.isin(tokens.id, torch.tensor([1, 11])))
    trigrams = next(each for each in found.values() if each.kind == "trigram")
    for row in np.flatnonzero((trigrams.answer >= 0).numpy())[:200]:
        said = trigrams.names[int(trigrams.answer[row])]
        spelled = " ".join(TEXTS[int(token)].strip().casefold() for token in tokens.id[row - 2 : row + 1])
        assert said == f"‘{spelled}’"
        assert int(tokens.window[row]) == int(tokens.window[row - 2])


def test_bad_questions_are_refused() -> None:
    tokens = _tokens()
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(Refusal, match="no width"):
        agreement((none, none), 2, tokens, answers_by_text(tokens, TEXTS), draws=2)
    with pytest.raises(Refusal, match="nothing is asked"):
        agreement((none, none), 2, tokens, [])
    one = Occurrences(tokens.id, tokens.window, tokens.position, torch.zeros_like(tokens.half))
    with pytest.raises(Refusal, match="one half"):
        agreement((none, none), 2, one, answers_by_text(one, TEXTS))
