"""Where a topic is in the weights: the parameter vectors and singular directions nearest to the mean of the words of a set.

The control are sets of as many other words, each as frequent and with a token vector as long as the word it stands for, because the mean
of any few words points where frequent tokens point. What a direction says by itself belongs in `projection` and `singular`.

Axes of this module: `word` is a token of the set, `vector` a direction that is searched.

Source: Dar et al. 2022, arXiv:2209.02535, appendix C, for the mean of centred embeddings as a query.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.readout import Reader
from microtome.vocabulary.parameters import Group, blocks, groups_of
from microtome.vocabulary.relations import single_tokens
from microtome.vocabulary.singular import head_spectra
from microtome.vocabulary.subject import Subject

__all__ = ["Located", "locate"]

_NEAR: Final = 40
"""Words from among which one is drawn to stand for a word of the set."""
_BLOCK: Final = 4096
_TINY: Final = 1e-12


@dataclass(frozen=True)
class Located:
    """A direction near to a set of words: its cosine with their mean, how many standard deviations that is from other sets' cosines.

    `p` is how often the direction that is nearest to another set, of all that are searched, stands out as far: it holds for all of them.
    """

    address: str
    cosine: float
    control: float
    z: float
    p: float


def locate(
    subject: Subject,
    words: Sequence[str],
    groups: Sequence[Group] | None = None,
    *,
    most: int = 20,
    draws: int = 200,
    seed: int = 0,
) -> list[Located]:
    """The directions nearest to a set of words, either way round: vectors of `groups` (all there are) and singular directions of heads.

    Directions that read are compared in the reading basis, those that write in the writing one.
    Errors: `Refusal` where fewer than two words are single tokens.
    Cost: 2 (1 + draws) d_model FLOP per direction; a block of them is held.
    """
    of = single_tokens(subject)
    tokens = torch.tensor(sorted({of[word] for word in words if word in of}))
    if len(tokens) < 2:
        raise Refusal(
            f"directions near {len(words)} words",
            why=f"{len(tokens)} of them are single tokens of {subject.name}",
            instead="name two or more that are, as they are written in a text",
        )
    drawn = torch.cat([tokens[None], _other_sets(subject, tokens, torch.tensor(sorted(of.values())), draws, seed)])
    queries = {end: _queries(reader, drawn) for end, reader in (("read", subject.read), ("write", subject.write))}
    best: list[tuple[float, float, float, str]] = []
    largest = torch.zeros(draws, dtype=torch.float64)
    for end, addresses, rows in _directions(subject, groups):
        reader = subject.read if end == "read" else subject.write
        for place in range(0, len(rows), _BLOCK):
            cosines = _cosines(rows[place : place + _BLOCK], reader, queries[end])
            mean, spread = cosines[:, 1:].mean(1), cosines[:, 1:].std(1).clamp(min=_TINY)
            z = (cosines - mean[:, None]) / spread[:, None]
            largest = torch.maximum(largest, z[:, 1:].abs().amax(0))
            nearest = z[:, 0].abs().topk(min(most, len(z))).indices.tolist()
            best += [(float(z[at, 0]), float(cosines[at, 0]), float(mean[at]), addresses[place + at]) for at in nearest]
        best = sorted(best, key=lambda entry: (-abs(entry[0]), entry[3]))[:most]
    return [
        Located(address, cosine, control, z, (1 + int((largest >= abs(z)).sum())) / (1 + draws))
        for z, cosine, control, address in best
    ]


def _directions(
    subject: Subject, groups: Sequence[Group] | None
) -> Iterator[tuple[str, list[str], Float[Tensor, "vector d_model"]]]:
    """Every direction that is searched: where it is met, addresses, rows."""
    for block in blocks(subject.weights, groups_of(subject.weights) if groups is None else groups, folding=subject.folding):
        yield block.group.end, [str(address) for address in block.addresses], block.rows
    for layer in range(subject.shape.layers):
        for spectrum in head_spectra(subject, layer):
            for end, rows in (("write", spectrum.write), ("read", spectrum.read)):
                if rows is not None:
                    name = "write" if end == "write" else "read"
                    yield end, [str(spectrum.part(name, number)) for number in range(len(rows))], rows


def _queries(reader: Reader, sets: Int[Tensor, "draw word"]) -> Float[Tensor, "draw d_model"]:
    """The mean of each set's centred token vectors, at length 1."""
    place = torch.searchsorted(reader.tokens.cpu(), sets)
    mean = torch.zeros(len(reader.matrix)) if reader.mean is None else reader.mean.float()
    rows = torch.stack([reader.matrix.T[each.to(reader.matrix.device)].mean(0).cpu() for each in place]) - mean.cpu()
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=_TINY)


def _cosines(
    rows: Float[Tensor, "vector d_model"], reader: Reader, queries: Float[Tensor, "draw d_model"]
) -> Float[Tensor, "vector draw"]:
    met = reader.entering(rows).cpu().double()
    return met @ queries.double().T / met.norm(dim=1, keepdim=True).clamp(min=_TINY)


def _other_sets(
    subject: Subject, tokens: Int[Tensor, " word"], words: Int[Tensor, " candidate"], draws: int, seed: int
) -> Int[Tensor, "draw word"]:
    """Sets of other words: for each word one of the forty nearest to it by rank of token id and of length of the token vector.

    Tokenizers count from frequent to rare.
    """
    columns = torch.searchsorted(subject.write.tokens.cpu(), words)
    lengths = subject.write.matrix.norm(dim=0).cpu()[columns]
    places = torch.stack([words.argsort().argsort(), lengths.argsort().argsort()], 1).double()
    mine = torch.searchsorted(words, tokens)
    near = torch.cdist(places[mine], places)
    near[:, mine] = torch.inf
    count = min(_NEAR, len(words) - len(tokens))
    if count < 2:
        raise Refusal(
            "directions near a set of words",
            why=f"the vocabulary has {max(count, 0)} other words to compare with",
            instead="name fewer words",
        )
    candidates = near.topk(count, largest=False).indices
    chosen = torch.randint(count, (draws, len(tokens)), generator=torch.Generator().manual_seed(seed))
    return words[candidates[torch.arange(len(tokens)), chosen]]
