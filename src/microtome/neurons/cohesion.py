"""Whether a unit's triggers are about one thing: are the texts before them alike, more than texts are?

Which words triggers end in is asked in `removal`; here the unit's own token is left out, and what is compared is the tokens before it. A people's
judgement of meaning is not replaced: two texts are alike here where their words have like vectors.
Axes of this module: `place`, a token of the half; `end`, top or bottom; `before`, the tokens before a place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from microtome.core import Batch, Half, Refusal, Role
from microtome.examples import Contexts
from microtome.numerics import benjamini_hochberg, permutation_p

__all__ = ["WIDTH", "Cohesion", "Places", "cohesion", "enough_before", "places_of"]

WIDTH: Final = 16
"""Tokens before a context that are compared."""
_UNITS = 128
_AGAIN = 4


@dataclass(frozen=True, eq=False)
class Places:
    """The tokens of one half of a text, one after the other, and which have enough ordinary tokens before them in their window.

    `first` is where each of `window` begins. `mean` is that of the token vectors over the text's ordinary tokens.
    """

    half: Half
    width: int
    ids: Int[Tensor, " place"]
    document: Int[Tensor, " place"]
    there: Bool[Tensor, " place"]
    window: Int[Tensor, " window"]
    first: Int[Tensor, " window"]
    embedding: Float[Tensor, "vocab d_model"]
    mean: Float[Tensor, " d_model"]

    def vectors(self, place: Int[Tensor, "*any"]) -> Float[Tensor, "*any d_model"]:
        """The mean of the centred vectors of the `width` tokens before each place, at length 1."""
        before = place.flatten()[:, None] + torch.arange(-self.width, 0)
        bag = torch.nn.functional.embedding_bag(self.ids[before.clamp(min=0)], self.embedding, mode="mean") - self.mean
        return torch.nn.functional.normalize(bag, dim=1).view(*place.shape, -1)


@dataclass(frozen=True, eq=False)
class Cohesion:
    """Mean cosine of pairs of a unit's contexts, of different documents, in one half; NaN where there is no such pair.

    `chance` is the mean of sets of as many random places, p how often they are as alike, q over all ends and units. `alike` is that of random
    places at the same tokens as the unit's contexts: what the unit's own token brings. A token that the half has once stands for itself there.
    """

    ends: tuple[str, ...]
    half: Half
    contexts: Int[Tensor, "end unit"]
    value: Float[Tensor, "end unit"]
    alike: Float[Tensor, "end unit"]
    chance: Float[Tensor, "end unit"]
    p: Float[Tensor, "end unit"]
    q: Float[Tensor, "end unit"]
    draws: int
    seed: int


def places_of(
    batches: Iterable[Batch], embedding: Float[Tensor, "vocab d_model"], *, half: Half = Half.CONFIRM, width: int = WIDTH
) -> Places:
    """Read a half of a text. Errors: `Refusal` where no token has `width` ordinary ones before it. Memory: 17 bytes a token."""
    ids, documents, there, ordinary, windows, lengths = [], [], [], [], [], []
    for batch in batches:
        mine = (batch.half == int(half)).cpu()
        own, roles = batch.ids.cpu()[mine], batch.roles.cpu()[mine]
        usual = _usual(roles)
        ids.append(own.flatten())
        documents.append(batch.document.cpu()[mine, None].expand_as(own).flatten())
        there.append(enough_before(batch, half, width).flatten())
        ordinary.append(usual.flatten())
        windows.append(batch.window.cpu()[mine])
        lengths.append(torch.full((len(own),), own.shape[1]))
    flat = [torch.cat(each) if each else torch.zeros(0) for each in (ids, documents, there, ordinary, windows, lengths)]
    if not len(flat[2]) or not bool(flat[2].any()):
        why = f"no token of the {half.name.lower()} half has {width} ordinary ones before it"
        raise Refusal("cohesion of contexts", why=why, instead="give longer texts, or compare fewer tokens")
    first = torch.nn.functional.pad(flat[5].cumsum(0), (1, 0))[:-1]
    order, vectors = flat[4].argsort(), embedding.float().cpu()
    used = flat[0][flat[3]].bincount(minlength=len(vectors)).float()
    mean = used @ vectors / used.sum()
    return Places(half, width, flat[0], flat[1], flat[2], flat[4][order], first[order], vectors, mean)


def enough_before(batch: Batch, half: Half, width: int) -> Bool[Tensor, "window token"]:
    """Which ordinary tokens of the windows of a half have `width` ordinary ones right before them."""
    usual = _usual(batch.roles.cpu()[(batch.half == int(half)).cpu()])
    count = torch.nn.functional.pad(usual.long().cumsum(1), (width + 1, 0))
    return (count[:, width : width + usual.shape[1]] - count[:, : usual.shape[1]] == width) & usual


def _usual(roles: UInt8[Tensor, "window token"]) -> Bool[Tensor, "window token"]:
    return (roles == int(Role.CONTENT)) | (roles == int(Role.FIRST))


def cohesion(contexts: Contexts, places: Places, *, draws: int = 1000, seed: int = 0) -> Cohesion:
    """Compare the texts before a unit's triggers with each other.

    Contexts at a place of no sign of their end, and those too near the beginning of their window, are left out.
    Not: a test of what the unit reads. Cost: 6 k (width + k) d_model FLOP a unit and end.
    Source: Geva et al. 2021, arXiv:2012.14913, section 3, where people name what triggers have in common.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = tuple(dict.fromkeys(contexts.ends))
    usable = places.there.nonzero()[:, 0]
    by_token = usable[places.ids[usable].argsort(stable=True)]
    columns: dict[str, list[Tensor]] = {"contexts": [], "value": [], "alike": []}
    for end in ends:
        groups = torch.tensor([each == end for each in contexts.ends])
        place = _places(contexts, groups, places, "bottom" if end == "bottom" else "top")
        columns["contexts"].append((place >= 0).sum(1))
        columns["value"].append(_alike(place, places))
        again = [_alike(_same_token(place, by_token, places, generator), places) for _ in range(_AGAIN)]
        columns["alike"].append(torch.stack(again).mean(0))
    made = {name: torch.stack(each) for name, each in columns.items()}
    p, chance = torch.full_like(made["value"], torch.nan), torch.full_like(made["value"], torch.nan)
    for count in made["contexts"].unique().tolist():
        mine = (made["contexts"] == count) & made["value"].isfinite()
        if bool(mine.any()):
            drawn = usable[torch.randint(len(usable), (draws, count), generator=generator)]
            null = _alike(drawn, places)
            null = null[null.isfinite()]
            chance[mine] = null.mean()
            p[mine] = permutation_p(made["value"][mine], null[:, None].expand(-1, int(mine.sum()))).to(p)
    q = benjamini_hochberg(p.flatten()).view_as(p)
    return Cohesion(ends, places.half, **made, chance=chance, p=p, q=q, draws=draws, seed=seed)


def _places(contexts: Contexts, groups: Bool[Tensor, " group"], places: Places, end: str) -> Int[Tensor, "unit k"]:
    """Where the contexts of an end are in the half, -1 for those that are not."""
    window, position, value, half = (
        each[groups].transpose(0, 1).flatten(1) for each in (contexts.window, contexts.position, contexts.value, contexts.half)
    )
    at = torch.searchsorted(places.window, window).clamp(max=len(places.window) - 1)
    known = (places.window[at] == window) & (half == int(places.half))
    place = torch.where(known, places.first[at] + position, 0)
    return torch.where(known & places.there[place] & ((value < 0) if end == "bottom" else (value > 0)), place, -1)


def _same_token(
    place: Int[Tensor, "unit k"], by_token: Int[Tensor, " place"], places: Places, generator: torch.Generator
) -> Int[Tensor, "unit k"]:
    """A random place at the token of each; `by_token` are the usable ones, by their tokens."""
    ordered, token = places.ids[by_token].contiguous(), places.ids[place.clamp(min=0)].contiguous()
    low, high = torch.searchsorted(ordered, token), torch.searchsorted(ordered, token, right=True)
    drawn = low + (torch.rand(place.shape, generator=generator, dtype=torch.float64) * (high - low)).long()
    return torch.where(place >= 0, by_token[drawn.clamp(max=len(by_token) - 1)], -1)


def _alike(place: Int[Tensor, "unit k"], places: Places) -> Float[Tensor, " unit"]:
    """Mean cosine of the pairs of each row that are of different documents."""
    found = []
    for rows in place.split(_UNITS):
        vectors, there = places.vectors(rows.clamp(min=0)), rows >= 0
        document = places.document[rows.clamp(min=0)]
        pairs = (document[:, :, None] != document[:, None, :]) & there[:, :, None] & there[:, None, :]
        cosine = torch.einsum("ukd,ujd->ukj", vectors, vectors).double()
        found.append((cosine * pairs).sum((1, 2)) / pairs.sum((1, 2)))
    return torch.cat(found)
