"""Lists of words that directions are scored against: do their scores in the vocabulary tell the words of a list from others?

A list is a file, one word a line, perhaps with a number behind a tab whose sign is the word's class; two files are two classes. A list
of one class is compared with words that are alike in what they could differ in for no good reason: how frequent they are, and how long
their token vectors. What has been scored belongs in the other modules.

Two controls, and a score must pass both. Shuffled lists say whether these words are special to the directions. But words of a class often
lie together, and then any direction tells them apart better than shuffled ones: so the directions are turned at random, too.

Axes of this module: `word` is a word of the list or one it is compared with, `vector` a direction, `sample` a score by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.readout import Reader
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.words import spelling, tokens_of_words

__all__ = ["Scoring", "WordList", "WordScores", "read_words", "score", "scoring", "shuffled", "tell_apart", "word_list"]

_LEAST: Final = 4
"""Words of a class, below which no shuffling is rare."""
_COMPARED: Final = 4
"""Words that each word of a list of one class is compared with."""
_STRATUM: Final = 10
"""Words of two classes, neighbours by frequency, among which classes are shuffled."""
_TURNS: Final = (16, 200)
_TURNS_AT_A_TIME: Final = 16
_HELD: Final = 1 << 26
"""Numbers that the words, turned, may take in all; there are fewer turns where they would take more."""
_TURNED: Final = 128
"""Vectors of a block that are turned."""
_SAMPLED: Final = 4
"""Of each 512 vectors, those whose shuffled scores stand for all: they have one distribution, but for ties."""
_AT_A_TIME: Final = 512


@dataclass(frozen=True, eq=False)
class WordList:
    """Words as tokens, one for each word, and which of them are `listed` (of the first class).

    Classes are shuffled within a `stratum` only. `asked` is how many words there were, of which some are no single token; `against` says
    what the others are.
    """

    name: str
    tokens: Int[Tensor, " word"]
    listed: Bool[Tensor, " word"]
    stratum: Int[Tensor, " word"]
    asked: int
    against: str


@dataclass(frozen=True, eq=False)
class Scoring:
    """A list made ready for directions that one reader reads.

    `lists` says which words are listed (1, others 0): first truly, then shuffled. `columns` are the words as directions meet them;
    `turned` the same, multiplied by random matrices, which turn directions at random and keep their inner products on average.
    """

    words: WordList
    lists: Float[Tensor, "draw word"]
    columns: Float[Tensor, "d_model word"]
    turned: Float[Tensor, "turn d_model word"]


@dataclass(frozen=True, eq=False)
class WordScores:
    """How well each of some vectors tells a list's words from others (`tell_apart`), and what chance gives.

    `pooled` is the mean over vectors of |2 x area - 1|, whichever end the words are at. By chance: `shuffled` and `turned` are areas of
    shuffled lists and of turned vectors, of some of the vectors one after the other; `pooled_shuffled` and `pooled_turned` what each
    shuffled list, and each turn, gives over all of them.
    """

    areas: Float[Tensor, " vector"]
    pooled: float
    shuffled: Float[Tensor, " sample"]
    turned: Float[Tensor, " other_sample"]
    pooled_shuffled: Float[Tensor, " draw"]
    pooled_turned: Float[Tensor, " turn"]


def read_words(paths: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """The words of two classes, of one file with numbers or of two files; the second is empty for a file without numbers.

    Words with the number 0 are left out. Errors: `Refusal` for a file that is not there or not text, more than two of them, a number that is
    none, numbers on some lines only, and a word in both classes.
    """
    if not 1 <= len(paths) <= 2:
        raise Refusal(f"{len(paths)} lists of words", why="there are two classes at most", instead="name one file, or two")
    read = [_lines(Path(path)) for path in paths]
    if len(read) == 2:
        first, second = ([word for word, _ in lines] for lines in read)
    elif all(number is None for _, number in read[0]):
        first, second = [word for word, _ in read[0]], []
    else:
        numbered = [(word, number) for word, number in read[0] if number is not None]
        if len(numbered) < len(read[0]):
            lacking = next(word for word, number in read[0] if number is None)
            raise Refusal(f"words {paths[0]}", why=f"{lacking} has no number and others have", instead="write WORD<TAB>NUMBER")
        first, second = [w for w, number in numbered if number > 0], [w for w, number in numbered if number < 0]
    both = {spelling(word) for word in first} & {spelling(word) for word in second}
    if both:
        raise Refusal(f"words {paths[-1]}", why=f"{min(both)} is in both classes", instead="leave it out of one of them")
    return first, second


def word_list(name: str, first: Sequence[str], second: Sequence[str], subject: Subject) -> WordList:
    """The list in the vocabulary of a subject, case aside; with no second class, compared with four words for each word.

    These are nearest by rank of token id (tokenizers count from frequent to rare) and by rank of length of the token vector.
    Errors: `Refusal` where fewer than four words of a class are single tokens, or there are no words to compare with.
    """
    of = {word: tokens[0] for word, tokens in tokens_of_words(subject.texts, subject.write.tokens.tolist()).items()}
    found = [list(dict.fromkeys(of[key] for word in words if (key := spelling(word)) in of)) for words in (first, second)]
    for words, tokens in zip((first, second), found, strict=True):
        if (words or words is first) and len(tokens) < _LEAST:
            why = f"{len(tokens)} of its {len(words)} words are single tokens of {subject.name}"
            raise Refusal(f"words {name}", why=why, instead=f"list more: {_LEAST} of a class is the least")
    asked = len({spelling(word) for word in (*first, *second)})
    if second:
        tokens = torch.tensor([*found[0], *found[1]])
        listed = torch.arange(len(tokens)) < len(found[0])
        order = tokens.argsort().argsort()
        return WordList(name, tokens, listed, order // _STRATUM, asked, "words of the list's other class")
    others = sorted(token for word, token in of.items() if word.isalpha() and len(word) > 1 and token not in set(found[0]))
    tokens, stratum = _compared(found[0], others, subject, name)
    listed = torch.arange(len(tokens)) < len(found[0])
    return WordList(name, tokens, listed, stratum, asked, "other words as frequent, with token vectors as long")


def scoring(words: WordList, reader: Reader, draws: int, *, seed: int) -> Scoring:
    """The list ready for a reader, shuffled `draws` times. Cost: 2 d_model word^2 FLOP for each of at most 200 turns."""
    columns = reader.matrix[:, torch.searchsorted(reader.tokens, words.tokens.to(reader.tokens))].cpu().double()
    if reader.through is not None:
        columns = reader.through.cpu().double() @ columns
    inner, outer = torch.linalg.qr(columns)
    turns = min(max(_HELD // columns.numel(), _TURNS[0]), _TURNS[1])
    generator = torch.Generator().manual_seed(seed)
    frames = (torch.randn(inner.shape, generator=generator, dtype=torch.float32) for _ in range(turns))
    turned = torch.stack([frame @ (outer.float() / len(columns) ** 0.5) for frame in frames])
    lists = torch.cat([words.listed.float()[None], shuffled(words, draws, seed=seed)])
    return Scoring(words, lists, columns.float(), turned)


def score(rows: Float[Tensor, "vector d_model"], ready: Scoring) -> WordScores:
    """Score directions against a list.

    Cost: 2 d_model word + 2 draw word FLOP per vector, and d_model word turn for 128 of them.
    """
    areas, sampled, sums = [], [], torch.zeros(len(ready.lists), dtype=torch.float64)
    for part in rows.split(_AT_A_TIME):
        found = tell_apart(part @ ready.columns, ready.lists)
        sums += (2 * found - 1).abs().sum(1)
        areas.append(found[0])
        sampled.append(found[1:, :_SAMPLED].T.flatten())
    pooled = sums / len(rows)
    some = rows[torch.linspace(0, len(rows) - 1, min(_TURNED, len(rows))).long()]
    turned = torch.cat([_turned_areas(some, part, ready) for part in ready.turned.split(_TURNS_AT_A_TIME)])
    spread = (2 * turned - 1).abs().mean(1)
    return WordScores(torch.cat(areas), float(pooled[0]), torch.cat(sampled), turned.flatten(), pooled[1:], spread)


def _turned_areas(
    rows: Float[Tensor, "vector d_model"], turned: Float[Tensor, "turn d_model word"], ready: Scoring
) -> Float[Tensor, "turn vector"]:
    scores = rows @ turned
    return tell_apart(scores.flatten(0, 1), ready.lists[:1])[0].view(len(turned), len(rows))


def tell_apart(scores: Float[Tensor, "vector word"], classes: Float[Tensor, "draw word"]) -> Float[Tensor, "draw vector"]:
    """The area under the ROC curve: how often a word of the first class (1, others 0) scores above one that is not; ties count half.

    Cost: a sort of each row, and 2 draw vector word FLOP.
    """
    ordered = scores.sort(1).values
    below = torch.searchsorted(ordered, scores.contiguous())
    ranks = (below + torch.searchsorted(ordered, scores.contiguous(), right=True) + 1).double() / 2
    first = classes.double().sum(1, keepdim=True)
    return (classes.double() @ ranks.T - first * (first + 1) / 2) / (first * (classes.shape[1] - first))


def shuffled(words: WordList, draws: int, *, seed: int) -> Float[Tensor, "draw word"]:
    """Which words are listed, shuffled within strata: 1 for those, 0 for the others. The same shuffle is for every vector."""
    keys = torch.rand(draws, len(words.tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    places = (keys + words.stratum).argsort(1)
    labels = words.listed[words.stratum.argsort(stable=True)].float()
    return torch.zeros(draws, len(labels)).scatter_(1, places, labels.expand(draws, -1))


def _compared(
    tokens: Sequence[int], others: Sequence[int], subject: Subject, name: str
) -> tuple[Int[Tensor, " word"], Int[Tensor, " word"]]:
    """The list and the words it is compared with, each with the number of the listed word it belongs to."""
    count = min(_COMPARED, len(others) // len(tokens))
    if count == 0:
        why = f"the vocabulary has {len(others)} other words for {len(tokens)}"
        raise Refusal(f"words {name}", why=why, instead="list fewer, or two classes")
    every = torch.tensor([*tokens, *others])
    columns = torch.searchsorted(subject.write.tokens.cpu(), every)
    norms = subject.write.matrix.norm(dim=0).cpu()[columns]
    places = torch.stack([every.argsort().argsort(), norms.argsort().argsort()], 1).double() / len(every)
    mine, rest = places[: len(tokens)], places[len(tokens) :]
    free = torch.ones(len(others), dtype=torch.bool)
    chosen, stratum = [], []
    for number, place in enumerate(mine):
        distance = (rest - place).square().sum(1).masked_fill(~free, torch.inf)
        nearest = distance.argsort(stable=True)[:count]
        free[nearest] = False
        chosen += [others[int(index)] for index in nearest]
        stratum += [number] * count
    return torch.tensor([*tokens, *chosen]), torch.tensor([*range(len(tokens)), *stratum])


def _lines(path: Path) -> list[tuple[str, float | None]]:
    """Words with their numbers, where they have one."""
    if not path.is_file():
        raise Refusal(f"words {path}", why="there is no such file", instead="name a file with a word on each line")
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise Refusal(f"words {path}", why="it is not UTF-8 text", instead="name a file with a word on each line") from error
    found: list[tuple[str, float | None]] = []
    for line in filter(None, lines):
        word, tab, number = line.partition("\t")
        try:
            found.append((word.strip(), float(number) if tab else None))
        except ValueError as error:
            raise Refusal(f"words {path}", why=f"{number} is no number", instead="write WORD<TAB>NUMBER") from error
    if not found:
        raise Refusal(f"words {path}", why="it is empty", instead="write a word on each line")
    return found
