"""Yun et al. 2021, arXiv:2103.15949: sentences with a pattern, made from templates, and the same with something changed; what a factor's code does.

What the paper changed by hand in one sentence is changed here by rule in several, so that there are intervals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from jaxtyping import Float
from torch import Tensor

from microtome.core import CONTENT
from microtome.corpus import prompt_batch
from microtome.factors.basis import Factors
from microtome.model import Model, observe
from microtome.numerics import hash_text

__all__ = ["FAMILIES", "ORIGINAL", "UNRELATED", "Perturbed", "perturbed", "sentences"]

ORIGINAL: Final = "as it is"
UNRELATED: Final = "another sentence"
_UNKNOWN: Final = "xxxx"
"""For a model without an unknown token."""

_NOUNS: Final = ("song", "film", "garden", "speech", "dinner", "painting", "novel", "house")
_ADJECTIVES: Final = (
    (("lovely", "beautiful"), ("warm", "tender"), ("clever", "witty"), ("bright", "radiant")),
    (("rich", "lavish"), ("gentle", "soft"), ("honest", "sincere"), ("brave", "bold")),
    (("fresh", "crisp"), ("elegant", "graceful"), ("lively", "spirited"), ("calm", "peaceful")),
)
_OPPOSITES: Final = (
    ("ugly", "cold", "stupid", "dull"),
    ("poor", "harsh", "false", "timid"),
    ("stale", "clumsy", "boring", "angry"),
)
_PLAIN: Final = (
    ("wooden", "square", "local", "annual"),
    ("northern", "yellow", "public", "daily"),
    ("double", "recent", "urban", "final"),
)
_THINGS: Final = (
    ("colour", "sound", "light", "movement"),
    ("pain", "money", "water", "time"),
    ("work", "music", "stone", "air"),
)
_CITIES: Final = ("Boston", "Dallas", "Portland", "Columbus", "Jackson", "Lincoln", "Denver", "Springfield")
_STATES: Final = ("Massachusetts", "Texas", "Oregon", "Ohio", "Mississippi", "Nebraska", "Colorado", "Illinois")
_DOERS: Final = ("soldiers", "farmers", "students", "officers", "engineers", "painters", "children", "workers")
_DONE: Final = ("destroyed", "painted", "discovered", "removed", "repaired", "copied", "opened", "moved")
_LIKE: Final = ("wrecked", "coloured", "found", "taken", "mended", "drawn", "unlocked", "carried")
_OBJECTS: Final = ("bridge", "fence", "cave", "statue", "engine", "map", "gate", "table")
_OTHERS: Final = (
    "Nobody knows why they keep coming here so early every morning .",
    "We went to see them because it had rained all week long .",
    "If you ask him again he will probably say nothing at all .",
    "I hope they will let us stay until the end of summer .",
)


def _adjectives(index: int, unknown: str) -> dict[str, str]:
    noun, pairs, kind = _NOUNS[index % len(_NOUNS)], _ADJECTIVES[index % len(_ADJECTIVES)], index % len(_ADJECTIVES)
    a, b, c, d = (first for first, _ in pairs)

    def row(words: tuple[str, ...]) -> str:
        return f"The {noun} was {words[0]} , {words[1]} , {words[2]} and {words[3]} ."

    return {
        ORIGINAL: row((a, b, c, d)),
        "synonyms": row(tuple(second for _, second in pairs)),
        "opposites": row(_OPPOSITES[kind]),
        "adjectives without feeling": row(_PLAIN[kind]),
        "half of them unknown": row((a, unknown, unknown, d)),
        "all of them unknown": row((unknown,) * 4),
        "nouns in their place": f"The {noun} was {' , '.join(_THINGS[kind][:3])} and {_THINGS[kind][3]} .",
        "one adjective": f"The {noun} was {a} .",
    }


def _city(index: int, unknown: str) -> dict[str, str]:
    city, state = _CITIES[index % len(_CITIES)], _STATES[index % len(_STATES)]
    other = (index + 3) % len(_CITIES)

    def born(place: str) -> str:
        return f"She was born in {place} , and left when she was ten ."

    return {
        ORIGINAL: born(f"{city} , {state}"),
        "another city and state": born(f"{_CITIES[other]} , {_STATES[other]}"),
        "a state of another city": born(f"{city} , {_STATES[other]}"),
        "a country for the state": born(f"{city} , Canada"),
        "the state unknown": born(f"{city} , {unknown}"),
        "both unknown": born(f"{unknown} , {unknown}"),
        "two cities": born(f"{city} and {_CITIES[other]}"),
        "without the state": born(city),
    }


def _passive(index: int, unknown: str) -> dict[str, str]:
    doer, done, what = (each[index % len(each)] for each in (_DOERS, _DONE, _OBJECTS))
    return {
        ORIGINAL: f"The {what} was {done} by the {doer} .",
        "synonyms": f"The {what} was {_LIKE[index % len(_LIKE)]} by the {doer} .",
        "another tense": f"The {what} has been {done} by the {doer} .",
        "without who did it": f"The {what} was {done} .",
        "the participle unknown": f"The {what} was {unknown} by the {doer} .",
        "an adjective in its place": f"The {what} was heavy for the {doer} .",
        "active, the same word": f"The {doer} {done} the {what} .",
        "active, perfect": f"The {doer} have {done} the {what} .",
    }


FAMILIES: Final[Mapping[str, Callable[[int, str], dict[str, str]]]] = {
    "adjectives in a row": _adjectives,
    "city, state": _city,
    "passive": _passive,
}
"""By the name of a pattern, the changes of its sentence number so and so; the first is the sentence itself."""


def sentences(family: str, count: int, unknown: str) -> dict[str, list[str]]:
    """For each change of a pattern's sentences `count` of them; two more have the words of the first in another order, and another sentence."""
    rows = [FAMILIES[family](index, unknown) for index in range(count)]
    found = {name: [row[name] for row in rows] for name in rows[0]}
    found["its words in another order"] = [_mixed(row[ORIGINAL]) for row in rows]
    found[UNRELATED] = [_OTHERS[index % len(_OTHERS)] for index in range(count)]
    return {name: [_closed(each) for each in several] for name, several in found.items()}


def _mixed(sentence: str) -> str:
    words = sentence.split()[:-1]
    return " ".join(sorted(words, key=lambda word: hash_text(f"{sentence} {word}"))) + " ."


def _closed(sentence: str) -> str:
    return sentence.replace(" ,", ",").replace(" .", ".")


@dataclass(frozen=True, eq=False)
class Perturbed:
    """The largest code of a factor in each sentence, change by change; sentence n of every change comes of the same one."""

    family: str
    unit: int
    layer: int
    codes: Mapping[str, Float[Tensor, " sentence"]]


def perturbed(model: Model, basis: Factors, unit: int, family: str, count: int) -> Perturbed:
    """Read all changes of a pattern's sentences. Cost: a pass over 10 `count` sentences."""
    known = getattr(model.tokenizer, "unk_token", None) if not model.shape.causal else None
    asked = sentences(family, count, known or _UNKNOWN)
    flat = [each for several in asked.values() for each in several]
    batch = prompt_batch(model.tokenizer, flat, context=model.shape.context, device=model.device)
    held: dict[object, Tensor] = {}

    def receive(site: object, value: object) -> None:
        assert isinstance(value, Tensor), "a stream has one state per token"
        held[site] = value

    observe(model, batch, basis.sites, receive)
    codes = basis.encode({basis.site: held[basis.site].float()})[..., unit].cpu()
    largest = codes.masked_fill(~batch.counted(CONTENT).cpu(), 0).amax(1)
    return Perturbed(family, unit, basis.site.layer or 0, dict(zip(asked, largest.view(len(asked), count), strict=True)))
