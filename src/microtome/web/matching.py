"""What units have to do with what is searched: a word, one token, a pattern of tokens, a phrase of the text, or a meaning.

Several at once are a unit's that has to do with each of them. Which units of those are shown, and in which order, is in `browse`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from microtome.core import Malformed, Refusal
from microtome.web.columns import NONE, Places, told, units_of
from microtome.web.index import KINDS, spelt_token, vocabulary
from microtome.web.meanings import Meant, meant
from microtome.web.phrases import Inside, inside
from microtome.web.reader import View
from microtome.web.records import Match, Pattern, Suggestion, Suggestions

__all__ = ["Kind", "Matched", "find_tokens", "matching"]

Kind = Literal["any", "promotes", "suppresses", "fires"]
SUGGESTED: Final = 24
_FIRES: Final = KINDS.index("fires")


@dataclass(frozen=True, eq=False)
class Matched:
    """How each unit has to do with what is searched, by place: its best ranks among written tokens, how many top contexts, cosines of meaning.

    `any` are the units that have to do with all of it; `ranked` whether a word or pattern is among it.
    """

    any: NDArray[np.bool_]
    ranked: bool
    promotes: NDArray[np.int16]
    suppresses: NDArray[np.int16]
    fires: NDArray[np.int64]
    inside: Inside | None
    meant: Meant | None
    search: Suggestions | None
    pattern: Pattern | None

    def at(self, place: int, of: int | None) -> Match:
        """What is told of the unit at `place`, which has `of` top contexts."""
        plus, minus = (None if ranks[place] == NONE else int(ranks[place]) for ranks in (self.promotes, self.suppresses))
        cosines = {} if self.meant is None else {kind: float(each[place]) for kind, each in self.meant.cosines.items()}
        return Match(
            promotes=plus, suppresses=minus, fires=int(self.fires[place]) or None, of=of,
            phrase=None if self.inside is None else int(self.inside.times[place]),
            reads=cosines.get("fires"), writes=cosines.get("promotes"),
        )  # fmt: skip

    def fit(self, places: Places, of: NDArray[Any]) -> list[NDArray[np.floating]]:
        """What sorts units by how well they fit, least first: by meaning, by the phrase, then by the best of all shares, and the number of contexts."""
        keys: list[NDArray[np.floating]] = []
        if self.meant is not None:
            keys.append(-self.meant.best()[places])
        contexts = np.maximum(of[places], 1)
        if self.inside is not None:
            keys.append(-self.inside.times[places] / contexts)
        if self.ranked:
            plus, minus = (
                np.where(ranks[places] == NONE, 0.0, 1.0 / (1.0 + ranks[places])) for ranks in (self.promotes, self.suppresses)
            )
            times = self.fires[places].astype(np.float64)
            keys += [-np.maximum(np.maximum(plus, minus), times / contexts), -times]
        return keys


def matching(
    view: View, *, token: str, exact: int | None, match: Kind, pattern: str, phrase: str, meaning: str
) -> Matched | None:
    """Units by what is searched; None where nothing is. Of the tokens that spell a word `exact` is the one that is meant, if one is.

    Errors: `Refusal` where the pattern is none, the phrase too short, or no word of a meaning is known.
    """
    if not any(each.strip() for each in (token, pattern, phrase, meaning)):
        return None
    found = find_tokens(view, token) if token.strip() else None
    kinds = [n for n, name in enumerate(KINDS) if match in ("any", name)]
    count = units_of(view)
    chosen = np.ones(count, np.bool_)
    ranks, fires = [np.full(count, NONE, np.int16) for _ in range(2)], np.zeros(count, np.int64)
    fitting = _fitting(view, pattern) if pattern else None
    if fitting is not None:
        some, ranks, fires = _by_token(view, fitting, [_FIRES])
        chosen &= some
    if found is not None:
        some, ranks, fires = _by_token(view, [each.token for each in found.tokens if exact in (None, each.token)], kinds)
        chosen &= some
    phrased = inside(view, phrase) if phrase.strip() else None
    if phrased is not None:
        chosen &= phrased.times > 0
    meaningful = None
    if meaning.strip():
        spelt = [(word, [each.token for each in find_tokens(view, word).tokens]) for word in meaning.split()]
        meaningful = meant(view, meaning, [KINDS[n] for n in kinds], spelt)
        chosen &= meaningful.fitting()
    return Matched(
        chosen, found is not None or fitting is not None, ranks[0], ranks[1], fires, phrased, meaningful, found,
        None if fitting is None else _pattern(vocabulary(view), fitting),
    )  # fmt: skip


def find_tokens(view: View, word: str) -> Suggestions:
    """Tokens equal to `word` but for spaces, case and word-piece marks, and the shortest tokens that contain it."""
    wanted = _bare(word)
    if not wanted:
        return Suggestions(tokens=[], near=[])
    texts, bare = vocabulary(view), view.once("bare", lambda v: [_bare(text) for text in vocabulary(v)])
    exact = [n for n, text in enumerate(bare) if text == wanted]
    near = sorted((len(text), n) for n, text in enumerate(bare) if wanted in text and text != wanted)[:SUGGESTED]
    return Suggestions(
        tokens=[Suggestion(token=n, text=texts[n]) for n in exact],
        near=[Suggestion(token=n, text=texts[n]) for _, n in near],
    )


def _bare(text: str) -> str:
    return text.removeprefix("##").strip().casefold()


def _by_token(
    view: View, tokens: Sequence[int], kinds: Sequence[int]
) -> tuple[NDArray[np.bool_], list[NDArray[np.int16]], NDArray[np.int64]]:
    """Of each unit whether it has to do with any of `tokens`, its best ranks among what it promotes and suppresses, and how many top contexts."""
    count = units_of(view)
    ranks = [np.full(count, NONE, np.int16) for _ in range(2)]
    fires = np.zeros(count, np.int64)
    for kind in kinds:
        places, numbers = told(view).of(kind, tokens)
        if kind == _FIRES:
            fires = np.bincount(places, weights=numbers, minlength=count).astype(np.int64)
        else:
            np.minimum.at(ranks[kind], places, numbers)
    return (fires > 0) | (ranks[0] != NONE) | (ranks[1] != NONE), ranks, fires


def _fitting(view: View, pattern: str) -> list[int]:
    """The tokens in whose text a regular expression is found."""
    try:
        view.sql("SELECT regexp_matches('', ?)", pattern)
    except Refusal as refusal:
        why = str(refusal.__cause__).splitlines()[0].removeprefix("Invalid Input Error: ")
        raise Malformed(
            f"pattern {pattern[:80]}",
            why=f"it is no regular expression ({why[:120]})",
            instead="put a \\ before signs that stand for themselves",
        ) from refusal
    found = view.arrow("SELECT token FROM mt_texts WHERE regexp_matches(text, ?) ORDER BY 1", pattern)
    return found["token"].to_numpy().tolist()


def _pattern(texts: Sequence[str], fitting: Sequence[int]) -> Pattern:
    some = [Suggestion(token=token, text=spelt_token(texts, token)) for token in fitting[:SUGGESTED]]
    return Pattern(tokens=len(fitting), some=some)
