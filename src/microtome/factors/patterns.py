"""What is known of language against what factors are: which question about a token, if any, says best whether a factor is active there.

Questions are of a token's word, spelling, place and run of tokens, and of labels that are given: part-of-speech tags, WordNet senses. The best is
chosen in the discover half and scored in the confirm half; where none is good, nothing known explains the factor, and somebody should look. What
explainers write belongs in `explain`; how the senses of one word are told, in `polysemy`.

Additional axes: `question` counts questions, `kind` their kinds, `entry` (token, factor) pairs at which a factor is active.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float64, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Half, Refusal, token_keys
from microtome.numerics import benjamini_hochberg, window_shifts
from microtome.probes import LabelledWords
from microtome.readout import pooled_chance
from microtome.readout.spellings import SPELLING

__all__ = ["LEAST", "TURNED", "Agreement", "Answers", "Occurrences", "agreement", "answers_by_text", "labelled_answers"]

TURNED: Final = "answers turned round in their windows"
"""What `Agreement` has beside its numbers."""
LEAST: Final = 5
"""Tokens of each half at which a factor is active, at least, of which is asked what explains it."""

_SPELLED: Final = (
    "starts with a capital", "is in capitals", "is of digits", "is punctuation", "ends a sentence", "is white space",
)  # fmt: skip
"""What is asked of `SPELLING`: nothing of spaces and letters, by which most tokens are alike."""
_ENDINGS: Final = (2, 3)
_Sparse = Any
"""A matrix of scipy in compressed rows, whose own types say little."""
_RUNS: Final = {2: "bigram", 3: "trigram"}


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Tokens of a text in order, window by window: their ids, windows, positions and halves."""

    id: Int64[Tensor, " row"]
    window: Int64[Tensor, " row"]
    position: Int64[Tensor, " row"]
    half: Int64[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class Answers:
    """Questions of a kind, of which at most one has yes for an answer: `names[answer]` is what is true of a token, -1 nothing."""

    kind: str
    names: tuple[str, ...]
    answer: Int64[Tensor, " row"]


def answers_by_text(tokens: Occurrences, texts: Sequence[str], *, least: int = 5) -> list[Answers]:
    """What the tokens' own `texts` (by id: `readout.texts_of`) say: spelling, place, word, the word before, endings, runs of two and three.

    Words are compared in small letters, without the spaces around them. Only what occurs `least` times is asked for.
    """
    known, own = tokens.id.unique(return_inverse=True)
    spelled = [texts[int(token)] for token in known]
    found = [
        Answers("spelling", (name,), torch.tensor([0 if SPELLING[name](text) else -1 for text in spelled])[own])
        for name in _SPELLED
    ]
    found.append(_place(tokens, least))
    words = [text.strip().casefold() for text in spelled]
    listed = sorted(set(words))
    number = {word: index for index, word in enumerate(listed)}
    word = torch.tensor([number[each] for each in words])[own]
    found.append(_common("word", word, lambda key: f"‘{listed[key]}’", least))
    for length in _ENDINGS:
        endings = sorted({each[-length:] for each in listed if each.isalpha() and len(each) > length + 1})
        index = {ending: place for place, ending in enumerate(endings)}
        of_word = torch.tensor(
            [index.get(each[-length:], -1) if each.isalpha() and len(each) > length + 1 else -1 for each in listed]
        )
        found.append(_common("ending", of_word[word], lambda key, endings=endings: f"-{endings[key]}", least))
    before, size = [word], len(listed)
    for back in range(1, max(_RUNS)):
        earlier = torch.full_like(word, -1)
        there = (tokens.window[back:] == tokens.window[:-back]) & (tokens.position[back:] == tokens.position[:-back] + back)
        earlier[back:] = torch.where(there, word[:-back], -1)
        before.append(earlier)
    found.append(_common("word before", before[1], lambda key: f"after ‘{listed[key]}’", least))
    for length, kind in _RUNS.items():
        key = torch.zeros_like(word)
        for part in reversed(before[:length]):
            key = torch.where((part < 0) | (key < 0), -1, key * size + part)

        def named(key: int, length: int = length) -> str:
            return "‘" + " ".join(listed[key // size ** (length - 1 - place) % size] for place in range(length)) + "’"

        found.append(_common(kind, key, named, least))
    return [each for each in found if each.names]


def _place(tokens: Occurrences, least: int) -> Answers:
    """Places by powers of two."""
    power = torch.where(tokens.position > 0, tokens.position.double().clamp(min=1).log2().floor() + 1, 0.0).long()
    return _common("place", power, lambda key: "place 0" if not key else f"places {2 ** (key - 1)} to {2**key - 1}", least)


def _common(kind: str, key: Int64[Tensor, " row"], named: Callable[[int], str], least: int) -> Answers:
    """Questions whether a token's key is one of those that occur often enough; -1 is no key."""
    values, inverse, counts = key.unique(return_inverse=True, return_counts=True)
    kept = (counts >= least) & (values >= 0)
    number = torch.where(kept, kept.long().cumsum(0) - 1, -1)
    return Answers(kind, tuple(named(value) for value in values[kept].tolist()), number[inverse])


def labelled_answers(kind: str, words: LabelledWords, tokens: Occurrences) -> Answers:
    """What labels say: the class of the word that a token belongs to. A window is the text of that number, as `probes.aligned` had them.

    Classes may be Brown tags, WordNet senses, or any other.
    """
    key = token_keys(words.text, words.first)
    order = key.argsort()
    if not len(order):
        return Answers(kind, words.classes, torch.full_like(tokens.id, -1))
    place = torch.searchsorted(key[order], token_keys(tokens.window, tokens.position), right=True) - 1
    row = order[place.clamp(min=0)]
    inside = (place >= 0) & (words.text[row] == tokens.window) & (tokens.position <= words.last[row])
    return Answers(kind, words.classes, torch.where(inside, words.y[row], -1))


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of each factor the question that goes best with it, and how well at the confirm half, which did not choose it.

    `question` is its number among `questions`, (kind, name); -1 for a factor that is too rarely active in a half, whose scores are NaN. `mcc` is
    the Matthews correlation of (answer is yes) and (factor is active), `f1` their F1; `control` is the mean Matthews correlation of what is chosen
    in the same way from answers that were turned round in their windows, `shifted_f1` their F1 in each draw, and `p` and `q` say whether `mcc` is
    beyond such. `by_kind` is the F1 at the confirm half of each kind's own best question.
    """

    questions: tuple[tuple[str, str], ...]
    kinds: tuple[str, ...]
    question: Int64[Tensor, " unit"]
    f1: Float64[Tensor, " unit"]
    mcc: Float64[Tensor, " unit"]
    control: Float64[Tensor, " unit"]
    shifted_f1: Float64[Tensor, "draw unit"]
    p: Float64[Tensor, " unit"]
    q: Float64[Tensor, " unit"]
    by_kind: Float64[Tensor, "kind unit"]

    def explained(self, least: float = 0.5, level: float = 0.05) -> Bool[Tensor, " unit"]:
        """Factors with a question whose F1 is at least so much, and that is no chance."""
        return (self.f1 >= least) & (self.q <= level)

    def unexplained(self, least: float = 0.5, level: float = 0.05) -> float:
        """The share of active factors that no question explains."""
        return 1 - float(self.explained(least, level)[self.question >= 0].double().mean())

    def unexplained_by_chance(self, least: float = 0.5) -> float:
        """The share of (draw, active factor) of which the F1 with answers that were turned round is below that: what `unexplained` would be by chance."""
        return float((self.shifted_f1[:, self.question >= 0] < least).double().mean())


def agreement(
    active: tuple[Int[Tensor, " entry"], Int[Tensor, " entry"]],
    units: int,
    tokens: Occurrences,
    answers: Sequence[Answers],
    *,
    draws: int = 8,
    seed: int = 0,
    least: int = LEAST,
) -> Agreement:
    """Compare where factors are active, (rows, factors), with the answers to all questions: chosen by MCC on the discover half, scored on the confirm half.

    Factors that are active at fewer than `least` tokens of a half are not asked: of them nothing can be confirmed.
    The null turns every window's answers round by an offset of its own, which keeps how often and in what runs they are yes, and chooses anew; p is
    the tail of `readout.pooled_chance` (not below 1 / (1 + draws factors), so a few factors take many draws), q over all factors.
    Errors: `Refusal` for fewer than three draws, for no question, and for tokens of one half.
    Cost: 1 + draws products of sparse matrices, each an operation for every (question with yes, active factor) of every token.
    """
    if draws < 3 or not answers:
        why = f"{draws} draws have no width of their own" if answers else "nothing is asked"
        raise Refusal("patterns of factors", why=why, instead="use three draws or more, and some questions")
    if any(not bool((tokens.half == half).any()) for half in Half):
        raise Refusal("patterns of factors", why="all tokens are in one half", instead="give documents of both halves")
    asked = tuple((each.kind, name) for each in answers for name in each.names)
    kinds = tuple(dict.fromkeys(kind for kind, _ in asked))
    kind = np.array([kinds.index(each) for each, _ in asked])
    row, unit = (each.cpu().numpy() for each in active)
    shape = (len(tokens.id), units)
    fires = scipy.sparse.csr_array((np.ones(len(row), np.int64), (row, unit)), shape=shape)
    yes = _matrix(answers, len(asked))
    halves = [(tokens.half == half).numpy().nonzero()[0] for half in Half]
    orders = [np.arange(len(tokens.id)), *(each.numpy() for each in window_shifts(tokens.window, draws, seed))]
    found = [_scored(yes[order], fires, halves, kind, len(kinds)) for order in orders]
    seen = np.minimum(*(fires[rows].sum(0) for rows in halves)) >= least
    nothing = torch.where(torch.from_numpy(seen), 0.0, torch.nan)
    real, drawn = found[0], torch.stack([each.mcc for each in found[1:]])
    p = torch.full((units,), torch.nan, dtype=torch.float64)
    tested = ~nothing.isnan()
    if bool(tested.any()):
        p[tested] = pooled_chance([real.mcc[tested]], [drawn[:, tested]], "greater")[0].double()
    return Agreement(
        asked,
        kinds,
        torch.where(tested, real.question, -1),
        real.f1 + nothing,
        real.mcc + nothing,
        drawn.mean(0) + nothing,
        torch.stack([each.f1 for each in found[1:]]) + nothing,
        p,
        benjamini_hochberg(p),
        real.by_kind + nothing,
    )


def _matrix(answers: Sequence[Answers], questions: int) -> _Sparse:
    """1 where a token's answer to a question is yes."""
    rows, columns, first = [], [], 0
    for each in answers:
        there = (each.answer >= 0).numpy().nonzero()[0]
        rows.append(there)
        columns.append(each.answer.numpy()[there] + first)
        first += len(each.names)
    row, column = np.concatenate(rows), np.concatenate(columns)
    return scipy.sparse.csr_array((np.ones(len(row), np.int64), (row, column)), shape=(len(answers[0].answer), questions))


@dataclass(frozen=True, eq=False)
class _Scored:
    question: Int64[Tensor, " unit"]
    mcc: Float64[Tensor, " unit"]
    f1: Float64[Tensor, " unit"]
    by_kind: Float64[Tensor, "kind unit"]


def _scored(
    yes: _Sparse,
    fires: _Sparse,
    halves: Sequence[NDArray[np.int64]],
    kind: NDArray[np.int64],
    kinds: int,
) -> _Scored:
    """Each factor's best question of each kind by the discover half, and its worth in the confirm half."""
    discover, confirm = (_Counts.of(yes[rows], fires[rows]) for rows in halves)
    units = fires.shape[1]
    together = discover.both.tocoo()
    question, unit = (each.astype(np.int64) for each in together.coords)
    mcc, _ = discover.worth(question, unit, together.data)
    order = np.lexsort((question, -mcc, kind[question], unit))
    group = unit[order].astype(np.int64) * kinds + kind[question[order]]
    lead = order[np.unique(group, return_index=True)[1]]
    best = np.full((kinds, units), -1, np.int64)
    value = np.full((kinds, units), -np.inf)
    best[kind[question[lead]], unit[lead]], value[kind[question[lead]], unit[lead]] = question[lead], mcc[lead]
    each, every = np.maximum(best, 0), np.broadcast_to(np.arange(units), best.shape)
    hits = np.asarray(confirm.both[each.ravel(), every.ravel()]).reshape(best.shape)
    worth, f1 = (np.where(best >= 0, part, 0.0) for part in confirm.worth(each, every, hits))
    top, unit = value.argmax(0), np.arange(units)
    return _Scored(*(torch.from_numpy(part) for part in (best[top, unit], worth[top, unit], f1[top, unit], f1)))


@dataclass(frozen=True, eq=False)
class _Counts:
    """Tokens of a half, with yes to each question, with each factor active, and with both."""

    tokens: int
    yes: NDArray[np.int64]
    fires: NDArray[np.int64]
    both: _Sparse

    @staticmethod
    def of(yes: _Sparse, fires: _Sparse) -> "_Counts":
        return _Counts(yes.shape[0], yes.sum(0), fires.sum(0), (yes.T @ fires).tocsr())

    def worth(
        self, question: NDArray[np.int64], unit: NDArray[np.int64], both: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """MCC and F1 of pairs; 0 where one side is constant."""
        yes, fires, n = self.yes[question].astype(float), self.fires[unit].astype(float), float(self.tokens)
        spread = np.sqrt(yes * (n - yes) * fires * (n - fires))
        mcc = np.divide(n * both - yes * fires, spread, out=np.zeros_like(spread), where=spread > 0)
        return mcc, np.divide(2.0 * both, yes + fires, out=np.zeros_like(spread), where=yes + fires > 0)
