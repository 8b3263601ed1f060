"""Primitive concepts: masks with names, of which explanations of units are made.

A row is a word with a label, or a token. Concepts are the word itself, how it is spelled, its label, its place, and the word and label before
it. Formulas of them belong in `formulas`. In this module `concept` counts concepts.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Role
from microtome.model import Model
from microtome.probes import LabelledWords
from microtome.readout.spellings import SPELLING

__all__ = [
    "ENDINGS",
    "PLACES",
    "Primitives",
    "embedding_neighbours",
    "joined",
    "token_primitives",
    "with_neighbours",
    "word_primitives",
]

ENDINGS: Final = ("s", "ed", "ing", "ly", "er", "est", "ion", "al", "n't", "'s")
"""Endings of words, of which they are not the whole."""
PLACES: Final = (4, 8, 16, 32, 64, 128)
"""Places in a text that a row may be before."""


@dataclass(frozen=True, eq=False)
class Primitives:
    """Masks over rows, each with a name.

    Errors: `Refusal` for another number of names.
    """

    names: tuple[str, ...]
    mask: Bool[Tensor, "concept row"]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.mask):
            why = f"there are {len(self.names)} names and {len(self.mask)} masks"
            raise Refusal("primitive concepts", why=why, instead="name each mask")

    def with_rows(self, half: Int[Tensor, " row"], fewest: int) -> "Primitives":
        """Those that at least `fewest` rows of each half have, and not all rows: what one document alone is about, is no concept."""
        least = torch.stack([self.mask[:, half == side].sum(1) for side in Half]).amin(0)
        kept = ((least >= fewest) & ~self.mask.all(1)).nonzero()[:, 0]
        return Primitives(tuple(self.names[row] for row in kept.tolist()), self.mask[kept])


def joined(*several: Primitives) -> Primitives:
    """The concepts of several sets, of the same rows."""
    return Primitives(tuple(name for each in several for name in each.names), torch.cat([each.mask for each in several]))


def word_primitives(words: LabelledWords, *, most: int = 500, fewest: int = 5) -> Primitives:
    """Concepts of labelled words: [label], ‘word’, spelling, place in the text, and [label] and ‘word’ of the word right before.

    Words are the `most` commonest, in any case; concepts of fewer than `fewest` rows in a half are left out. The authors take 2,000 lemmas.
    """
    spelled: list[str] = list(words.words)
    text, first, last = (each.tolist() for each in (words.text, words.first, words.last))
    follows = [row > 0 and text[row] == text[row - 1] and first[row] == last[row - 1] + 1 for row in range(len(spelled))]
    labels = [f"[{words.classes[label]}]" for label in words.y.tolist()]
    keys = [f"‘{word.casefold()}’" for word in spelled]
    return joined(
        _each(labels, len(words.classes)),
        _each(keys, most),
        _asked(spelled),
        _places(words.first),
        *(_each([f"after {of[row - 1]}" if follows[row] else "" for row in range(len(of))], most) for of in (labels, keys)),
    ).with_rows(words.half, fewest)


def token_primitives(
    batches: Iterable[Batch], texts: Sequence[str], *, roles: frozenset[Role] = CONTENT, most: int = 500, fewest: int = 5
) -> Primitives:
    """Concepts of the counted tokens of windows, in their order: ‘token’, spelling, place in the window, and the token before.

    `texts` are those of the vocabulary (`readout.texts_of`). Tokens that differ in case, or in the spaces around, are one concept.
    """
    ids, before, place, half = [], [], [], []
    for batch in batches:
        row, column = batch.counted(roles).cpu().nonzero(as_tuple=True)
        found = batch.ids.cpu()
        ids.append(found[row, column])
        before.append(torch.where(column > 0, found[row, (column - 1).clamp(min=0)], -1))
        place.append(column)
        half.append(batch.half.cpu().long()[row])
    names = [f"‘{text.strip().casefold() or text}’" for text in texts]
    tokens: list[int] = torch.cat(ids).tolist()
    return joined(
        _each([names[token] for token in tokens], most),
        _asked([texts[token] for token in tokens]),
        _places(torch.cat(place)),
        _each([f"after {names[token]}" if token >= 0 else "" for token in torch.cat(before).tolist()], most),
    ).with_rows(torch.cat(half), fewest)


def with_neighbours(primitives: Primitives, nearest: Mapping[str, Sequence[str]]) -> Primitives:
    """Further concepts `near ‘x’`: that of x, or of one of those that `nearest` has for it. Names that are no concept are left out.

    As a concept of a formula such a union counts once, as the authors' operator NEIGHBORS does.
    """
    place = {name: row for row, name in enumerate(primitives.names)}
    names, masks = [], []
    for name, others in nearest.items():
        rows = [place[each] for each in (name, *others) if each in place]
        if name in place and len(rows) > 1:
            names.append(f"near {name}")
            masks.append(primitives.mask[rows].any(0))
    return joined(primitives, Primitives(tuple(names), torch.stack(masks))) if masks else primitives


def embedding_neighbours(model: Model, primitives: Primitives, k: int = 5) -> dict[str, tuple[str, ...]]:
    """For each concept ‘word’ the k others whose embeddings in the model are nearest: mean rows of W_E, less their mean, by cosine.

    The authors take GloVe vectors; any other mapping does as well.
    Errors: `Refusal` for a model without a tokenizer, and for fewer than k + 1 words.
    """
    words = [name for name in primitives.names if name.startswith("‘")]
    if model.tokenizer is None or len(words) <= k:
        why = f"{model.name} has no tokenizer" if model.tokenizer is None else f"there are {len(words)} words"
        raise Refusal("neighbours of words", why=why, instead="give a mapping, or more words")
    backend, table = model.tokenizer.backend_tokenizer, model.weights.get("W_E").float().cpu()
    ids = [backend.encode(f" {word[1:-1].strip()}", add_special_tokens=False).ids for word in words]
    vectors = torch.stack([table[each].mean(0) for each in ids])
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    near = (vectors @ vectors.T).fill_diagonal_(-torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :k]
    return {word: tuple(words[other] for other in row) for word, row in zip(words, near.tolist(), strict=True)}


def _each(keys: Sequence[str], most: int) -> Primitives:
    """A concept for each of the commonest keys; "" is none."""
    common = sorted(Counter(key for key in keys if key).items(), key=lambda each: (-each[1], each[0]))[:most]
    number = {name: index for index, (name, _) in enumerate(common)}
    column = torch.tensor([number.get(key, -1) for key in keys], dtype=torch.int64)
    return Primitives(tuple(number), column == torch.arange(len(number))[:, None])


def _asked(texts: Sequence[str]) -> Primitives:
    """What is asked of a spelling, and endings."""
    tests: dict[str, Callable[[str], bool]] = dict(SPELLING)
    for ending in ENDINGS:
        tests[f"ends in -{ending}"] = lambda text, ending=ending: len(text.strip()) > len(ending) and text.endswith(ending)
    kinds = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    answers = torch.tensor([[bool(test(text)) for text in kinds] for test in tests.values()])
    return Primitives(tuple(tests), answers[:, torch.tensor([kinds[text] for text in texts], dtype=torch.int64)])


def _places(place: Int64[Tensor, " row"]) -> Primitives:
    return Primitives(tuple(f"before place {end}" for end in PLACES), place < torch.tensor(PLACES)[:, None])
