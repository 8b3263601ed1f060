"""Gurnee et al. 2023, arXiv:2305.01610: the experiments as functions of a model and the Brown corpus. Their tables belong in `gurnee2023`.

Labels are of words (part of speech, form, whether a number is a year, whether a word ends a compound) and of passages (the kind of text they
are from, by the mean activation of their tokens). The axis `label` counts labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Half, Refusal, Site, UnitAddress
from microtome.corpus import prompt_batch
from microtome.model import Model
from microtome.neurons.effects import UnitAblations, why_no_effects
from microtome.neurons.knowledge import units_alike
from microtome.numerics import hash_parts, hash_text
from microtome.probes import (
    LabelledText,
    LabelledWords,
    Monosemantic,
    Pooling,
    Sparse,
    SparseProbe,
    aligned,
    brown_class,
    class_moments,
    f_statistic,
    monosemantic,
    read_tagged,
    sparse_probe,
    word_vectors,
)
from recipes.brown import GENRES, genre_of, tagged_texts
from recipes.windows import some_layers

__all__ = ["COMPOUNDS", "FULL", "QUICK", "Ablated", "Curve", "Family", "Found", "Sample", "Size", "labelled_samples", "measure"]

Family = Literal["part of speech", "form", "number", "compound", "context"]
COMPOUNDS: Final = (
    ("united", "states"),
    ("high", "school"),
    ("last", "year"),
    ("world", "war"),
    ("white", "house"),
    ("years", "ago"),
    ("old", "man"),
    ("last", "night"),
)
"""Pairs of words that are met together, and each with others."""
_CONTEXTS: Final = {"learned": "j", "news": "a", "government": "h", "fiction": "klmnp"}
_CLASSES: Final = ("noun", "verb", "determiner", "preposition")
_FORMS: Final = {"-ing of verbs": ("vb", "vbg"), "past of verbs": ("vb", "vbd"), "plural of nouns": ("nn", "nns")}
_FAMILY: Final[Mapping[str, Family]] = dict.fromkeys(_FORMS, "form")
_BEFORE: Final = 20
"""Words that are read before a word of a compound or a number."""
_FEWEST: Final = 6
_ALL: Final = 1 << 30


Labels = dict[str, tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]]
_Label = Callable[[Sequence[str], int], str | None]
"""Words of a sentence and a place to the label of the word there, or None."""


@dataclass(frozen=True)
class Size:
    """Documents of words, examples of each side of a label of its own, passages of a kind of text, layers (None: all), and what is searched."""

    documents: int
    compounds: int
    examples: int
    passages: int
    layers: int | None
    enumerated: frozenset[Family]
    draws: int
    ablated: int
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


QUICK: Final = Size(12, 5, 40, 30, 6, frozenset({"context", "number"}), 19, 8)
FULL: Final = Size(40, 8, 100, 40, None, frozenset({"context", "number", "form", "part of speech", "compound"}), 99, 40)


@dataclass(frozen=True, eq=False)
class Sample:
    """Texts with words that vectors are taken of, and labels of some of these: by name the rows, and which of them have it."""

    family: Family
    texts: tuple[LabelledText, ...]
    words: LabelledWords
    pooling: Pooling
    labels: Mapping[str, tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]]


@dataclass(frozen=True, eq=False)
class Curve:
    """Probes of one label in some layers, and the best single unit of each, with its F, by the discover half.

    `alone` is what a search for units that tell the label alone finds in the layer of the largest F, where it was asked for.
    """

    family: Family
    label: str
    layers: tuple[int, ...]
    probes: tuple[SparseProbe, ...]
    best: tuple[int, ...]
    f: tuple[float, ...]
    alone: Monosemantic | None

    @property
    def strongest(self) -> int:
        """The place of the layer whose best unit differs most, by the discover half."""
        return max(range(len(self.f)), key=lambda place: self.f[place])


@dataclass(frozen=True, eq=False)
class Ablated:
    """Changes of the loss of passages of a kind and of others, in nats a token, without the unit that tells the kind, and without random units.

    The first column is the unit.
    """

    label: str
    unit: UnitAddress
    own: Float[Tensor, "window unit"]
    others: Float[Tensor, "window unit"]


@dataclass(frozen=True, eq=False)
class Found:
    """All labels, and what was left out for lack of examples."""

    model: str
    depth: int
    layers: tuple[int, ...]
    curves: tuple[Curve, ...]
    left_out: tuple[str, ...]
    ablated: Ablated | None

    def of(self, family: Family) -> list[Curve]:
        """The labels of a family."""
        return [each for each in self.curves if each.family == family]


def measure(model: Model, brown: Path, size: Size, *, seed: int = 0) -> Found:
    """Probes of every label in every layer, units that tell it alone, and the ablation of the one that tells a kind of text best.

    Cost: one reading of each sample; then for each label and layer some probes of up to 64 units. Memory: 2 bytes for each example, layer and unit.
    Errors: `Refusal` for a mixture of experts.
    """
    if model.shape.experts:
        why = "units inside experts are met by some tokens only"
        raise Refusal(f"sparse probes of {model.name}", why=why, instead="name a model without a mixture of experts")
    samples, left = labelled_samples(model, brown, size, seed)
    layers = some_layers(model, size.layers)
    sites = [Site("mlp_act", layer) for layer in layers]
    curves: list[Curve] = []
    for sample in samples:
        vectors = word_vectors(model, sample.texts, sample.words, sites, pooling=sample.pooling, dtype="float16")
        for name, (rows, y) in sample.labels.items():
            if not _enough(y, sample.words.half[rows]):
                left.append(name)
                continue
            curves.append(_curve(sample, name, [vectors[site][rows].float() for site in sites], layers, size, seed))
    contexts = [each for each in curves if each.family == "context"]
    ablated = None
    if contexts and why_no_effects(model) is None and model.shape.causal:
        passages = next(each for each in samples if each.family == "context")
        ablated = _ablated(model, passages, max(contexts, key=lambda each: max(each.f)), size, seed)
    return Found(model.name, model.shape.layers, tuple(layers), tuple(curves), tuple(left), ablated)


def _enough(y: Bool[Tensor, " row"], half: Int[Tensor, " row"]) -> bool:
    return all(min(int((y & (half == side)).sum()), int((~y & (half == side)).sum())) >= 3 for side in Half)


def _curve(
    sample: Sample, name: str, vectors: Sequence[Float[Tensor, "row unit"]], layers: Sequence[int], size: Size, seed: int
) -> Curve:
    rows, y = sample.labels[name]
    half = sample.words.half[rows]
    settings = Sparse(size.ks, draws=3, seed=seed)
    labels = torch.where(half == Half.DISCOVER, y.long(), -1)
    f = [f_statistic(class_moments(x, labels, 2)) for x in vectors]
    largest = [float(each.max()) for each in f]
    alone, family = None, _FAMILY.get(name, sample.family)
    if family in size.enumerated:
        at = max(range(len(largest)), key=lambda place: largest[place])
        alone = monosemantic(vectors[at], y, half, top=10, draws=size.draws, seed=seed)
    probes = tuple(sparse_probe(x, y, half, settings) for x in vectors)
    return Curve(family, name, tuple(layers), probes, tuple(int(each.argmax()) for each in f), tuple(largest), alone)


def _ablated(model: Model, sample: Sample, curve: Curve, size: Size, seed: int) -> Ablated:
    """The unit of largest F, over passages of the confirm half that are of the kind and that are not."""
    at = curve.strongest
    unit = UnitAddress("neurons", curve.best[at], layer=curve.layers[at])
    units = [unit, *(each for drawn in units_alike(model, [unit], 3, seed) for each in drawn)]
    fold = UnitAblations(model, tuple(each.layer or 0 for each in units), tuple(each.index for each in units))
    rows, y = sample.labels[curve.label]
    found = []
    for wanted in (True, False):
        mine = rows[(y == wanted) & (sample.words.half[rows] == Half.CONFIRM)]
        some = mine[hash_parts(seed, mine).argsort()][: size.ablated]
        texts = [sample.texts[place].text for place in sample.words.text[some].tolist()]
        state = fold.init()
        fold.update(state, {}, prompt_batch(model.tokenizer, texts, context=model.shape.context, device=model.device))
        found.append(fold.result(state).change)
    return Ablated(curve.label, unit, *found)


def labelled_samples(model: Model, brown: Path, size: Size, seed: int = 0) -> tuple[list[Sample], list[str]]:
    """Every sample that the corpus gives, aligned with the model's tokens, and the labels that it has no examples of."""
    sentences = [text for path in sorted(brown.glob("c[a-r][0-9][0-9]")) for text in read_tagged(path, relabel=str)]
    asked: list[tuple[str, _Label]] = [("year", _number)]
    asked += [(f"{first} {second}", _pair(first, second)) for first, second in COMPOUNDS[: size.compounds]]
    made, left = [_of_words(model, tagged_texts(brown, size.documents, relabel=str))], []
    for name, label in asked:
        texts = _examples(sentences, label, size.examples, seed)
        if sum(text.labels[0] == name for text in texts) < _FEWEST or len({text.labels for text in texts}) < 2:
            left.append(name)
            continue
        words = aligned(model.tokenizer, texts, fewest=2)
        made.append(Sample("number" if name == "year" else "compound", tuple(texts), words, "last", {name: _is(words, name)}))
    passages = list(_passages(brown, size.passages))
    words = aligned(model.tokenizer, passages, fewest=2)
    made.append(Sample("context", tuple(passages), words, "average", {name: _is(words, name) for name in _CONTEXTS}))
    return made, left


def _of_words(model: Model, texts: Sequence[LabelledText]) -> Sample:
    """Parts of speech against all other words, and forms among words of their class."""
    words = aligned(model.tokenizer, texts, fewest=2)
    tags = [words.classes[label] for label in words.y.tolist()]
    found: Labels = {}
    every = torch.arange(len(tags))
    for name in _CLASSES:
        found[name] = every, torch.tensor([brown_class(tag) == name for tag in tags])
    for name, (plain, marked) in _FORMS.items():
        rows = torch.tensor([place for place, tag in enumerate(tags) if tag in (plain, marked)], dtype=torch.int64)
        found[name] = rows, torch.tensor([tags[place] == marked for place in rows.tolist()], dtype=torch.bool)
    return Sample("part of speech", tuple(texts), words, "last", found)


def _is(words: LabelledWords, name: str) -> tuple[Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """All rows, and which are of the class `name`."""
    place = words.classes.index(name) if name in words.classes else -1
    return torch.arange(len(words.y)), words.y == place


def _number(words: Sequence[str], place: int) -> str | None:
    """Whether a number is a year."""
    word = words[place]
    if not word.isdigit():
        return None
    return "year" if len(word) == 4 and 1500 <= int(word) < 2000 else "number"


def _pair(first: str, second: str) -> _Label:
    """Whether a word ends the pair; others are its second word elsewhere, and what follows its first word elsewhere."""

    def label(words: Sequence[str], place: int) -> str | None:
        before, word = words[place - 1].casefold() if place else "", words[place].casefold()
        if before == first and word == second:
            return f"{first} {second}"
        return "other" if (before == first or word == second) and word.isalpha() else None

    return label


def _examples(sentences: Sequence[LabelledText], label: _Label, most: int, seed: int) -> list[LabelledText]:
    """At most `most` words of each label by hash, in the order of the corpus; each a text of its own that ends with it, as a decoder reads it."""
    found: dict[str, list[tuple[int, int, LabelledText]]] = {}
    for number, text in enumerate(sentences):
        for place in range(2, len(text.words)):
            name = label(text.words, place)
            if name is not None:
                order = hash_text(f"{seed} {text.document} {text.text} {place}")
                found.setdefault(name, []).append((order, number, _until(text, place, name)))
    chosen = [each for several in found.values() for each in sorted(several, key=lambda each: each[0])[:most]]
    return [text for _, _, text in sorted(chosen, key=lambda each: (each[1], each[0]))]


def _until(text: LabelledText, place: int, label: str) -> LabelledText:
    begin = text.spans[max(0, place - _BEFORE)][0]
    low, high = text.spans[place]
    return LabelledText(text.document, text.text[begin:high], (text.words[place],), (label,), ((low - begin, high - begin),))


def _passages(brown: Path, most: int) -> Iterator[LabelledText]:
    """The first 40 words of documents, `most` of each kind of text and as many of the kinds that have no name here; one vector for each."""
    left = dict.fromkeys((*_CONTEXTS, "other"), most)
    letters = {letter: name for name, several in _CONTEXTS.items() for letter in several}
    texts = tagged_texts(brown, _ALL, 3, words=40)
    for text in sorted(texts, key=lambda each: (hash_text(each.document + each.text), each.document)):
        assert genre_of(text.document) in GENRES.values()
        kind = letters.get(text.document[1], "other")
        if left[kind] > 0 and len(text.words) > 1:
            left[kind] -= 1
            begin = text.spans[1][0]
            yield LabelledText(text.document, text.text, (text.text[begin:],), (kind,), ((begin, len(text.text)),))
