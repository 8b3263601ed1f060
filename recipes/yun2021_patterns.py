"""Yun et al. 2021, arXiv:2103.15949: patterns of sentences by rule, the factor that goes with each, and sentences made to be changed a little.

A rule says which words of a tagged passage belong to a pattern. The factor of a pattern is chosen in one half of the documents and judged in the other.
Additional axes: `place` counts the sites of a dictionary, `tenth` the tenths of a factor's codes from the largest down.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from microtome.numerics import hash_text
from microtome.probes import LabelledText
from recipes.claims import Estimate, share_of
from recipes.yun2021_text import Codes, States

__all__ = ["PATTERNS", "Matched", "Pattern", "average_precision_of", "matched", "places", "with_patterns"]

_STATES: Final = frozenset(
    re.findall(
        r"\S+",
        "Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware Florida Georgia Hawaii Idaho Illinois Indiana Iowa Kansas Kentucky "
        "Louisiana Maine Maryland Massachusetts Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada New North Ohio Oklahoma Oregon "
        "Pennsylvania Rhode South Tennessee Texas Utah Vermont Virginia Washington West Wisconsin Wyoming Ala. Calif. Conn. D.C. Fla. Ga. Ill. Ind. "
        "Ky. La. Mass. Md. Me. Mich. Minn. Miss. Mo. N.C. N.H. N.J. N.Y. Ore. Pa. R.I. S.C. Tenn. Tex. Va. Vt. Wash. Wis.",
    )
)
_SAYING: Final = frozenset({"said", "asked", "replied", "cried", "says", "answered", "added", "told", "explained"})
_YEAR: Final = re.compile(r"1[4-9]\d\d('s|s|-\d+)?")
_BY_TAG: Final = (("np", "P"), ("nn", "n"), ("nr", "n"), ("jj", "j"), ("be", "b"), ("vbn", "x"), ("rb", "r"), ("ql", "r"), ("*", "r"), ("cc", "c"),
    ("at", "a"), ("dt", "a"), ("pp$", "a"), ("ap", "a"), ("cd", "d"))  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """A name, a regular expression over letters that stand for words (see `_letter`), and what the paper has of a factor for the like."""

    name: str
    rule: str
    paper: str

    def holds(self, text: LabelledText) -> list[bool]:
        """Which words belong to it."""
        found = [False] * len(text.words)
        for each in re.finditer(self.rule, _letters(text)):
            found[each.start() : each.end()] = [True] * (each.end() - each.start())
        return found


PATTERNS: Final = (
    Pattern("numbers in brackets", r"\([^().]{0,7}[dy][^().]{0,7}\)", "unit conversion in brackets: 0, 0, 64.5, 95.5 %"),
    Pattern("years near each other", r"y[^y.]{1,4}y", "consecutive years: 0, 100, 85, 95.5 %"),
    Pattern("nouns in a list", r"(?:a?j?[nP]+,)+a?j?[nP]+,?ca?j?[nP]+", "enumeration of nouns: 8, 98.5, 100, 100 %"),
    Pattern("adjectives in a row", r"j(?:,?c?j)+", "described, and perturbed; no share"),
    Pattern("city, state", r"P+,S", "city, state: 51.5, 91.5, 91, 77.5 %"),
    Pattern("passive", r"br?x", "-"),
    Pattern("speech, who said it", r"q,?[^.,q]{0,2}s", "-"),
    Pattern("an of-phrase in another", r"oa?j?noa?j?n", "-"),
)
"""The paper's shares are of the 200 largest activations of one factor at its layers 4, 6, 8 and 10."""


def _letters(text: LabelledText) -> str:
    return "".join(map(_letter, text.words, text.labels))


@cache
def _letter(word: str, tag: str) -> str:
    """One letter for a word: brackets, commas, y year, d number, q closing quote, s saying, o of, S state, P name, n noun, j adjective, and so on."""
    small = word.casefold()
    if _YEAR.fullmatch(small):
        return "y"
    if word in "(),":
        return word
    if word == "''":
        return "q"
    if small in _SAYING or small == "of":
        return "s" if small in _SAYING else "o"
    if word[:1].isdigit():
        return "d"
    if word in _STATES and tag.startswith(("np", "nn-tl", "jj-tl")):
        return "S"
    if tag.startswith((".", ":")):
        return "."
    return next((letter for begin, letter in _BY_TAG if tag.removeprefix("fw-").startswith(begin)), "_")


def with_patterns(texts: Sequence[LabelledText], count: int, least: int, seed: int = 0) -> list[LabelledText]:
    """`count` passages drawn by hash, and as many more as it takes for `least` passages with each pattern, if there are so many."""
    ordered = sorted(range(len(texts)), key=lambda each: hash_text(f"{seed} {texts[each].document} {texts[each].text}"))
    taken, left = ordered[:count], ordered[count:]
    held = {each: set(_held(texts[each])) for each in ordered}
    counts = {pattern.name: sum(pattern.name in held[each] for each in taken) for pattern in PATTERNS}
    for each in left:
        if any(counts[name] < least for name in held[each]):
            taken.append(each)
            for name in held[each]:
                counts[name] += 1
    return [texts[each] for each in sorted(taken)]


def _held(text: LabelledText) -> list[str]:
    letters = _letters(text)
    return [pattern.name for pattern in PATTERNS if re.search(pattern.rule, letters)]


def places(pattern: Pattern, states: States) -> Int64[Tensor, " row"]:
    """The number of the run of words of a pattern that a token belongs to; -1 for none. Runs are numbered over all windows."""
    number, found = -1, []
    for text in states.text.passages:
        own, before = [], False
        for here in pattern.holds(text):
            number += here and not before
            own.append(number if here else -1)
            before = here
        found.append(own)
    return states.truths(found)


def average_precision_of(codes: Codes, y: Bool[Tensor, " row"], among: Bool[Tensor, " row"]) -> Float64[Tensor, " unit"]:
    """Average precision of every factor among some tokens, those at which it is not active coming last, together.

    Codes must be of these tokens only (`Codes.only`). Chance is the share of positive tokens.
    """
    hit = y[codes.row].double()
    total = torch.cat([hit.new_zeros(1), hit.cumsum(0)])
    before = total[torch.searchsorted(codes.unit, codes.unit)]
    precision = (total[1:] - before) / (codes.rank + 1)
    positives = float((y & among).sum())
    found, caught = (
        torch.zeros(codes.units, dtype=torch.float64).index_add_(0, codes.unit, each) for each in (hit * precision, hit)
    )
    return (found + (positives - caught) * positives / float(among.sum())) / positives


def _largest(codes: Codes, y: Bool[Tensor, " row"], n: int) -> Float64[Tensor, " unit"]:
    """The share of each factor's n largest codes at tokens of the pattern."""
    first = codes.rank < n
    return torch.zeros(codes.units, dtype=torch.float64).index_add_(0, codes.unit[first], y[codes.row[first]].double()) / n


@dataclass(frozen=True, eq=False)
class Matched:
    """A pattern and the factor that goes with it best, at each place and over all (`best`, by the discover half); all numbers are of the confirm half.

    `share` is of the top contexts, at most one of a sentence; `precision` of tokens at which the factor is active, `recall` of the pattern's places
    where it is active somewhere, both of the best; `tenths` are shares of its tokens by tenths of its codes. `along` are shares of top contexts of that
    factor at the other places, and `contexts` its largest tokens.
    """

    pattern: Pattern
    base: float
    units: tuple[int, ...]
    share: tuple[Estimate, ...]
    area: tuple[float, ...]
    best: int
    along: tuple[float, ...]
    precision: Estimate
    recall: Estimate
    tenths: Float64[Tensor, " tenth"]
    contexts: tuple[int, ...]


def matched(
    patterns: Sequence[Pattern], states: States, codes: Sequence[Codes], *, top: int, fewest: int
) -> dict[str, Matched]:
    """Choose a factor for each pattern and judge it; patterns with fewer than `fewest` places in a half are left out.

    A factor is chosen by the discover half: by the share of the pattern's tokens among its `top` largest codes there, and in ties by its average
    precision over all tokens. Cost: a look at every code for each pattern.
    """
    discover, confirm = (states.tagged & half for half in (~states.confirm, states.confirm))
    halves = [(each.only(discover), each.only(confirm)) for each in codes]
    found = {}
    for pattern in patterns:
        run = places(pattern, states)
        if min(len(run[(run >= 0) & half].unique()) for half in (discover, confirm)) >= fewest:
            found[pattern.name] = _matched(pattern, run, states, (discover, confirm), halves, top)
    return found


def _matched(
    pattern: Pattern,
    run: Int64[Tensor, " row"],
    states: States,
    among: tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]],
    halves: Sequence[tuple[Codes, Codes]],
    top: int,
) -> Matched:
    y, (discover, confirm) = run >= 0, among
    values = [_largest(own, y, top) + average_precision_of(own, y, discover) / top for own, _ in halves]
    chosen = [int(value.argmax()) for value in values]
    best = max(range(len(values)), key=lambda place: float(values[place].max()))
    share, area, along = [], [], []
    for unit, (_, mine) in zip(chosen, halves, strict=True):
        area.append(float(average_precision_of(mine, y, confirm)[unit]))
        share.append(share_of(y[_one_of_a_sentence(mine, unit, states, top)]))
        along.append(share_of(y[_one_of_a_sentence(mine, chosen[best], states, top)]).value)
    mine = halves[best][1]
    active, _ = mine.factor(chosen[best])
    return Matched(
        pattern=pattern,
        base=float(y[confirm].double().mean()),
        units=tuple(chosen),
        share=tuple(share),
        area=tuple(area),
        best=best,
        along=tuple(along),
        precision=share_of(y[active]),
        recall=share_of(torch.isin(run[y & confirm].unique(), run[active])),
        tenths=torch.tensor([float(y[part].double().mean()) for part in active.tensor_split(10)], dtype=torch.float64),
        contexts=tuple(_one_of_a_sentence(mine, chosen[best], states, 5).tolist()),
    )


def _one_of_a_sentence(codes: Codes, unit: int, states: States, top: int) -> Int64[Tensor, " some"]:
    """The tokens of a factor's largest codes, at most one of each sentence."""
    row, _ = codes.factor(unit)
    seen: dict[int, int] = {}
    for each, sentence in zip(row.tolist(), states.sentence[row].tolist(), strict=True):
        if len(seen) == top:
            break
        seen.setdefault(sentence, each)
    return torch.tensor(list(seen.values()), dtype=torch.int64)
