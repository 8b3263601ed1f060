"""Labelled words as a model sees them: which tokens they are, and their vectors at any site.

Words meet tokens by the characters that both cover. Reading label files is the business of `labels`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.corpus import prompt_batch
from microtome.corpus.tokenising import Tokenizer, wrapping
from microtome.model import Model, observe
from microtome.numerics import hash_text
from microtome.probes.cases import Cases, require_classes
from microtome.probes.labels import LabelledText
from microtome.probes.pooling import Pooling, pooled

__all__ = ["LabelledWords", "aligned", "token_runs", "word_vectors", "words_seen"]

MISALIGNED: Final = 0.05
"""The share of words that may have no token of their own before labels are refused."""
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledWords:
    """Words of texts: in which text, from token `first` to token `last`, and of which class, document, half and kind (the word itself).

    `missed` counts words without tokens of their own, `leading` those at the very first token of a text, where decoders put what has
    nothing to do with the word, and `rare` names the classes that were left out, with how many words they had.
    """

    text: Int64[Tensor, " row"]
    first: Int64[Tensor, " row"]
    last: Int64[Tensor, " row"]
    y: Int64[Tensor, " row"]
    document: Int64[Tensor, " row"]
    half: Int64[Tensor, " row"]
    kind: Int64[Tensor, " row"]
    classes: tuple[str, ...]
    words: tuple[str, ...]
    missed: int
    leading: int
    rare: Mapping[str, int]

    def cases(self, x: Float[Tensor, "row unit"]) -> Cases:
        """Their vectors, with labels."""
        return Cases(x, self.y, self.classes, self.document, self.half, self.kind)


def token_runs(offsets: Integers, spans: Integers) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """The first and last token of each word, and whether the word has tokens and shares none with another.

    `offsets` and `spans` are rows (begin, end) of characters, in order; a token belongs to a word if they have a character in common.
    """
    covers = np.flatnonzero(offsets[:, 1] > offsets[:, 0])  # special tokens cover nothing
    begin, end = offsets[covers].T
    first = np.searchsorted(np.maximum.accumulate(end), spans[:, 0], side="right")
    last = np.searchsorted(begin, spans[:, 1], side="left") - 1
    alone = last >= first
    taken = np.zeros(len(covers) + 1, np.int64)
    np.add.at(taken, first[alone], 1)
    np.add.at(taken, last[alone] + 1, -1)
    shared = np.concatenate([[0], np.cumsum(np.cumsum(taken[:-1]) > 1)])
    alone[alone] = shared[last[alone] + 1] == shared[first[alone]]
    found = np.append(covers, -1)
    return found[np.clip(first, 0, len(covers))], found[np.clip(last, 0, len(covers))], alone


def aligned(tokenizer: Tokenizer | None, texts: Sequence[LabelledText], *, fewest: int = 1) -> LabelledWords:
    """Find the tokens of every word; classes with fewer than `fewest` words are left out and named.

    Documents are dealt to the halves by the rank of the hash of their names; a single document by its texts, which then count as documents.
    Errors: `Refusal` where more than 5 % of the words have no token of their own, where a text and its words do not fit, and for a class
    with one example.
    """
    if tokenizer is None or not texts:
        why = "the model has no tokenizer" if texts else "there is none"
        raise Refusal("labelled texts", why=why, instead="give texts, and a checkpoint with a tokenizer.json")
    backend, around = tokenizer.backend_tokenizer, wrapping(tokenizer)
    columns: list[list[int]] = []
    labels: list[str] = []
    words: list[str] = []
    missed: list[str] = []
    leading = 0
    for number, text in enumerate(texts):
        for word, (begin, end) in zip(text.words, text.spans, strict=True):
            if not word or text.text[begin:end] != word:
                why = f"its text has {text.text[begin:end]!r} where the label's word is {word!r}"
                raise Refusal(f"labels of {text.document}", why=why, instead="give labels made for this very text")
        offsets = np.array(backend.encode(text.text, add_special_tokens=True).offsets, np.int64).reshape(-1, 2)
        first, last, alone = token_runs(offsets, np.array(text.spans, np.int64).reshape(-1, 2))
        for row, word in enumerate(text.words):
            if not alone[row]:
                missed.append(word)
            elif first[row] == 0 and not around.before:
                leading += 1
            else:
                columns.append([number, int(first[row]), int(last[row])])
                labels.append(text.labels[row])
                words.append(word)
    total = len(columns) + len(missed) + leading
    if len(missed) > MISALIGNED * total or not columns:
        shown = ", ".join(repr(word) for word in missed[:3]) or "every word is the first of its text"
        why = f"{len(missed)} of {total} words have no token of their own: {shown}"
        raise Refusal("labels", why=why, instead="give words as the text has them, or a model with smaller tokens")
    return _labelled(texts, columns, labels, words, (len(missed), leading, fewest))


def _labelled(
    texts: Sequence[LabelledText],
    columns: Sequence[Sequence[int]],
    labels: Sequence[str],
    words: Sequence[str],
    counts: tuple[int, int, int],
) -> LabelledWords:
    missed, leading, fewest = counts
    sizes = Counter(labels)
    classes = tuple(sorted(name for name, count in sizes.items() if count >= fewest))
    number = {name: index for index, name in enumerate(classes)}
    kept = [row for row, name in enumerate(labels) if name in number]
    places = torch.tensor([columns[row] for row in kept], dtype=torch.int64).reshape(-1, 3)
    kinds = {word: index for index, word in enumerate(sorted({words[row].casefold() for row in kept}))}
    names = [text.document for text in texts]
    names = names if len(set(names)) > 1 else [f"{name} {index}" for index, name in enumerate(names)]
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    by_hash = {name: rank % 2 for rank, name in enumerate(sorted(order, key=lambda name: (hash_text(name), name)))}
    document = torch.tensor([order[name] for name in names])[places[:, 0]]
    half = torch.tensor([by_hash[name] for name in names])[places[:, 0]]
    y = torch.tensor([number[labels[row]] for row in kept], dtype=torch.int64)
    require_classes(y, classes, 2, "in all")
    kind = torch.tensor([kinds[words[row].casefold()] for row in kept], dtype=torch.int64)
    rare = {name: count for name, count in sorted(sizes.items()) if count < fewest}
    spelled = tuple(words[row] for row in kept)
    text, first, last = places.T
    return LabelledWords(text, first, last, y, document, half, kind, classes, spelled, missed, leading, rare)


def words_seen(
    model: Model,
    texts: Sequence[LabelledText],
    words: LabelledWords,
    sites: Sequence[Site],
    receive: Callable[[Site, Int[Tensor, " row"], Float[Tensor, "row unit"]], None],
    *,
    pooling: Pooling = "last",
    at_once: int = 8,
) -> None:
    """Read the texts and hand over, for each site, the vectors of some of the words and which they are; nothing is kept.

    Texts go through the model `at_once` at a time, by length.
    Errors: `Refusal` for a text that the model cannot read whole, and for sites that it has not.
    """
    lengths = torch.zeros(len(texts), dtype=torch.int64).scatter_reduce(0, words.text, words.last, "amax")
    for some in lengths.argsort(stable=True).split(at_once):
        mine = torch.isin(words.text, some).nonzero()[:, 0]
        if not len(mine):
            continue
        chosen = [texts[index].text for index in some.tolist()]
        batch = prompt_batch(model.tokenizer, chosen, context=model.shape.context, device=model.device)
        order = some.argsort()
        window = order[torch.searchsorted(some[order], words.text[mine])]
        places = (window, words.first[mine], words.last[mine])

        def pool(site: Site, value: Tensor, mine: Tensor = mine, places: tuple[Tensor, Tensor, Tensor] = places) -> None:
            receive(site, mine, pooled(value.flatten(2), *places, pooling))

        observe(model, batch, sites, pool)


def word_vectors(
    model: Model,
    texts: Sequence[LabelledText],
    words: LabelledWords,
    sites: Sequence[Site],
    *,
    pooling: Pooling = "last",
    dtype: Literal["float32", "float16"] = "float32",
) -> dict[Site, Float[Tensor, "row unit"]]:
    """Vectors of all words at some sites. Memory: 4 bytes (or 2) for each word, site and unit."""
    kept: dict[Site, Tensor] = {}

    def keep(site: Site, rows: Tensor, values: Tensor) -> None:
        if site not in kept:
            kept[site] = torch.empty(len(words.y), values.shape[1], dtype=getattr(torch, dtype))
        largest = torch.finfo(kept[site].dtype).max
        kept[site][rows] = values.cpu().float().clamp(-largest, largest).to(kept[site].dtype)

    words_seen(model, texts, words, sites, keep, pooling=pooling)
    return kept
