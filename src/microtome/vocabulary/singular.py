"""The directions a matrix of weights works along: singular vectors of W_VO and of feed-forward matrices, read in the vocabulary.

Unlike the coordinates inside a head they depend on the function alone. Those whose singular values are nearly the same turn freely
among themselves: they are one subspace and are read as one. Which directions lie nearest to a set of words is said in `locating`.

Axes of this module: `direction` counts singular vectors, the largest singular value first.

Source: Millidge and Black 2022, The Singular Value Decompositions of Transformer Weight Matrices are Highly Interpretable (no arXiv
entry).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import RandomDirections, Reader, TopTokens, pooled_chance, quoted, read_random, tokens_table, top_tokens
from microtome.vocabulary.background import reader_moments
from microtome.vocabulary.circuits import layer_heads
from microtome.vocabulary.composition import Metric
from microtome.vocabulary.findings import LARGEST_Q, Row
from microtome.vocabulary.parameters import GROUPS, Block, End, Group, block_of, layers_of
from microtome.vocabulary.projection import CONTROL, mixtures
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.tables import stat_table

__all__ = [
    "ReadSpectrum",
    "Spectrum",
    "head_spectra",
    "matrix_spectrum",
    "read_spectra",
    "singular_findings",
    "singular_rows",
    "singular_stats",
    "subspaces",
]

GAP: Final = 1e-2
"""Relative gap between singular values below which their vectors are one subspace."""
_FAINT: Final = 1e-6
_DRAWS: Final = 512
_SPELT: Final = {"W_in": "svd_in", "W_gate": "svd_gate", "W_up": "svd_up", "W_out": "svd_out"}


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular directions of a matrix of weights in the stream, as rows of length 1: what it reads, what it writes, or both.

    The matrix sends `read` of a direction to `value` times its `write`; feed-forward matrices have one of the two, the other being in
    the space of units. `group` numbers subspaces: directions of one share a singular value, nearly.
    """

    address: UnitAddress
    value: Float[Tensor, " direction"]
    read: Float[Tensor, "direction d_model"] | None
    write: Float[Tensor, "direction d_model"] | None
    group: Int[Tensor, " direction"]

    def part(self, end: End, direction: int) -> UnitAddress:
        """The address of a direction: heads.5/1.svd3 is written, heads.5/1.svdin3 read; of a feed-forward matrix svd_out.5/3."""
        if self.address.basis == "heads":
            return replace(self.address, part=f"{'svd' if end == 'write' else 'svdin'}{direction}")
        return replace(self.address, index=direction)


@dataclass(frozen=True, eq=False)
class ReadSpectrum:
    """The directions of a spectrum at one end in the vocabulary, both ends of each, beside mixtures of the layer's vectors.

    Signs are such that the strongest token of what is written, or else read, is promoted.
    """

    spectrum: Spectrum
    end: End
    top: TopTokens
    random: RandomDirections

    @property
    def addresses(self) -> list[str]:
        """Of each direction, in order."""
        return [str(self.spectrum.part(self.end, number)) for number in range(len(self.spectrum.value))]


def head_spectra(subject: Subject, layer: int, metric: Metric = "stream") -> list[Spectrum]:
    """The singular directions of W_VO of every head of a layer, at most d_head; those of nothing (below 1e-6 of the first) left out.

    From QR decompositions of both factors and the singular values of a d_head x d_head matrix. In the metric "tokens" they are those of
    the matrix over the vocabulary, E' W_VO E, as the stream's directions that say so.
    Cost: O(d_model d_head^2) per head; in the metric "tokens" 2 d_model^2 d_head more.
    """
    heads = layer_heads(subject.weights, layer, folding=subject.folding)
    roots = (None, None) if metric == "stream" else (_root(subject.read), _root(subject.write))
    if not bool(torch.isfinite(heads.v).all() and torch.isfinite(heads.o).all()):
        why = "W_V or W_O of the layer holds NaN or infinity"
        raise Refusal(f"heads of layer {layer}", why=why, instead="check the checkpoint")
    found = []
    for head in range(len(heads.q)):
        v, o = heads.v[head // heads.sharing].double(), heads.o[head].double()
        left, right = (
            torch.linalg.qr(side.T if root is None else root @ side.T).R for side, root in zip((v, o), roots, strict=True)
        )
        first, value, second = torch.linalg.svd(left @ right.T)
        kept = value > _FAINT * value[0].clamp(min=torch.finfo(torch.float64).tiny)
        read = _unit(second[kept] @ right @ v)
        write = _unit(first.T[kept] @ left @ o)
        address = UnitAddress("heads", head, layer=layer)
        found.append(Spectrum(address, value[kept].float(), read, write, _groups(value[kept])))
    return found


def matrix_spectrum(block: Block) -> Spectrum:
    """The singular directions of a feed-forward matrix in the stream, of all its units (of an expert's: one after the other, together).

    Errors: `Refusal` for a group that is no feed-forward matrix. Cost: 2 unit d_model^2 FLOP and an eigenvalue problem of size d_model.
    """
    if block.group.name not in _SPELT:
        raise Refusal(
            f"singular directions of {block.group.name}",
            why="they are read of heads and feed-forward matrices",
            instead="use W_out",
        )
    rows = block.rows.double()
    squares, vectors = torch.linalg.eigh(rows.T @ rows)
    value = squares.flip(0).clamp(min=0).sqrt()
    kept = value > _FAINT * value[0].clamp(min=torch.finfo(torch.float64).tiny)
    directions = vectors.T.flip(0)[kept].float()
    read, write = (directions, None) if block.group.end == "read" else (None, directions)
    return Spectrum(
        UnitAddress(_SPELT[block.group.name], 0, layer=block.layer), value[kept].float(), read, write, _groups(value[kept])
    )


def read_spectra(
    subject: Subject,
    groups: Sequence[Group] = (),
    k: int = 20,
    *,
    metric: Metric = "stream",
    most: int = 8,
    layers: Iterable[int] | None = None,
) -> Iterator[ReadSpectrum]:
    """The `most` first singular directions of every head, at both of its ends, and of the feed-forward matrices `groups`, in the vocabulary.

    Cost: 2 d_model vocab FLOP per direction, and of 512 mixtures per layer and end.
    """
    for layer in range(subject.shape.layers) if layers is None else layers:
        give_back_freed_memory()
        blocks = _block(subject, "W_V", layer), _block(subject, "W_O", layer)
        randoms: dict[End, RandomDirections] = {block.group.end: _mixed(subject, block, k) for block in blocks}
        spectra = [_cut(each, most) for each in head_spectra(subject, layer, metric) if len(each.value)]  # of pruned heads none
        yield from _read(subject, spectra, randoms)
        for group in groups:
            if layer in layers_of(subject.weights, group):
                block = block_of(subject.weights, group, layer, folding=subject.folding)
                yield from _read(subject, [_cut(matrix_spectrum(block), most)], {group.end: _mixed(subject, block, k)})


def subspaces(subject: Subject, spectrum: Spectrum, end: End, k: int = 20) -> list[tuple[list[int], list[int]]]:
    """The subspaces of more than one direction, with the k tokens whose vectors have most of their squared length in each.

    Directions inside a subspace are arbitrary, and so are their tokens; these are not. Cost: 2 direction d_model vocab FLOP.
    """
    directions, reader = getattr(spectrum, end), subject.read if end == "read" else subject.write
    if directions is None:
        return []
    lengths = reader.matrix.norm(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    found = []
    for number in spectrum.group.unique().tolist():
        members = (spectrum.group == number).nonzero()[:, 0]
        if len(members) > 1:
            basis = torch.linalg.qr(directions[members].T).Q.T
            share = (reader.entering(basis) @ reader.matrix).norm(dim=0) / lengths
            best = share.sort(descending=True, stable=True).indices[:k]
            found.append((members.tolist(), reader.tokens[best].tolist()))
    return found


def singular_rows(found: Iterable[ReadSpectrum]) -> pa.Table:
    """Rows of the table `tokens`: of subspaces of more than one direction none, because their directions are arbitrary."""
    tables = []
    for each in found:
        alone = _alone(each.spectrum)
        top = TopTokens(*(part[alone] for part in vars(each.top).values()))
        addresses = [address for address, one in zip(each.addresses, alone.tolist(), strict=True) if one]
        tables.append(tokens_table(addresses, top))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def singular_stats(found: Sequence[ReadSpectrum], run: str) -> pa.Table:
    """Rows of `unit_stats`: strength of both ends, singular value, and how many directions share it."""
    q = _q(found)
    tables = []
    for each, quality in zip(found, q, strict=True):
        for side, stat in enumerate(("read_top", "read_bottom")):
            control = float(each.random.strength.mean())
            tables.append(
                stat_table(each.addresses, stat, each.top.strength[:, side], (control, CONTROL), run, quality[:, side])
            )
        size = torch.bincount(each.spectrum.group)[each.spectrum.group].double()
        tables.append(stat_table(each.addresses, "singular_value", each.spectrum.value, (None, ""), run))
        tables.append(stat_table(each.addresses, "subspace_size", size, (None, ""), run))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def singular_findings(found: Sequence[ReadSpectrum], texts: Sequence[str], most: int = 20) -> list[Row]:
    """The directions that stand out furthest, q at most 0.01, each head or matrix and each first word once."""
    entries = []
    for each, quality in zip(found, _q(found), strict=True):
        for direction, side in ((quality <= LARGEST_Q) & _alone(each.spectrum)[:, None]).nonzero().tolist():
            entries.append((-float(each.top.strength[direction, side]), each, direction, side, float(quality[direction, side])))
    rows: dict[str, Row] = {}
    seen: set[str] = set()
    for strength, each, direction, side, quality in sorted(entries, key=lambda entry: (entry[0], entry[1].addresses[entry[2]])):
        words = [texts[int(token)] for token in each.top.tokens[direction, side]]
        key, address = words[0].strip().casefold() or words[0], str(each.spectrum.address)
        if key in rows or address in seen or len(rows) == most:
            continue
        seen.add(address)
        verb = "writes" if each.end == "write" else "reads"
        control, (low, high) = float(each.random.strength.mean()), each.random.interval
        sentence = (
            f"Singular direction {each.addresses[direction]}{'+-'[side]} (value {float(each.spectrum.value[direction]):.2f}) {verb} "
            f"{quoted(words, 5)}: the first stands out by {-strength:.1f} standard deviations (mixtures of its layer's vectors: "
            f"{control:.1f}, 95 % within {low:.1f} to {high:.1f})"
        )
        rows[key] = {
            "kind": "singular direction", "subject": each.addresses[direction], "sentence": sentence, "value": -strength,
            "control": control, "control_kind": CONTROL, "q": quality,
        }  # fmt: skip
    return list(rows.values())


def _read(subject: Subject, spectra: Sequence[Spectrum], randoms: Mapping[End, RandomDirections]) -> Iterator[ReadSpectrum]:
    """All ends that spectra have, signs set by the one that comes first: what is written. They are read together, an end at a time."""
    ends: tuple[End, ...] = ("write", "read")
    there: list[End] = [end for end in ends if spectra and getattr(spectra[0], end) is not None]
    counts = [len(each.value) for each in spectra]
    sign, tops = torch.ones(sum(counts)), dict[End, TopTokens]()
    for end in there:
        reader = subject.read if end == "read" else subject.write
        directions = torch.cat([getattr(each, end) for each in spectra])
        top = top_tokens(directions * sign[:, None], reader, randoms[end])
        if end == there[0]:
            sign = _signs(top)
            top = _mirrored(top, sign)
        tops[end] = top
    for spectrum, signs, rows in zip(spectra, sign.split(counts), torch.arange(len(sign)).split(counts), strict=True):
        signed = {end: getattr(spectrum, end) * signs[:, None] for end in there}
        for end in there:
            top = TopTokens(*(part[rows] for part in vars(tops[end]).values()))
            yield ReadSpectrum(replace(spectrum, **signed), end, top, randoms[end])


def _mirrored(top: TopTokens, sign: Float[Tensor, " direction"]) -> TopTokens:
    """What the directions times `sign` would be read as: opposite directions have their ends exchanged."""
    tokens, scores, strength = (
        torch.where(sign.view(-1, *[1] * (part.ndim - 1)) < 0, part.flip(1), part)
        for part in (top.tokens, top.scores, top.strength)
    )
    return TopTokens(tokens, scores * sign[:, None, None], top.control, strength)


def _signs(top: TopTokens) -> Float[Tensor, " direction"]:
    """1 where the largest score by size is positive."""
    first = top.scores[:, :, 0].abs()
    return torch.where(first[:, 0] >= first[:, 1], 1.0, -1.0)


def _groups(value: Float[Tensor, " direction"]) -> Int[Tensor, " direction"]:
    """Numbers of subspaces: a new one begins where the value falls by a hundredth or more."""
    return torch.cat([torch.zeros(1), ((value[:-1] - value[1:]) >= GAP * value[:-1]).cumsum(0)]).to(torch.int64)[: len(value)]


def _alone(spectrum: Spectrum) -> Tensor:
    return torch.bincount(spectrum.group)[spectrum.group] == 1


def _cut(spectrum: Spectrum, most: int) -> Spectrum:
    """The first directions, and the rest of the subspace of the last of them."""
    last = spectrum.group[min(most, len(spectrum.group)) - 1]
    kept = spectrum.group <= last
    read, write = (None if rows is None else rows[kept] for rows in (spectrum.read, spectrum.write))
    return Spectrum(spectrum.address, spectrum.value[kept], read, write, spectrum.group[kept])


def _q(found: Sequence[ReadSpectrum]) -> list[Float[Tensor, "direction end"]]:
    """q-values of both ends of all directions; each against its own mixtures, the tail that of all mixtures (`readout.pooled_chance`)."""
    sets: dict[int, list[int]] = {}  # spectra of a layer and an end share their mixtures
    for place, each in enumerate(found):
        sets.setdefault(id(each.random), []).append(place)
    strength = [torch.cat([found[place].top.strength.flatten() for place in mine]) for mine in sets.values()]
    draws = [found[mine[0]].random.strength.reshape(-1, 1) for mine in sets.values()]
    p: dict[int, Tensor] = {}
    for mine, part in zip(sets.values(), pooled_chance(strength, draws, "greater"), strict=True):
        p |= zip(mine, part.split([found[place].top.strength.numel() for place in mine]), strict=True)
    q = benjamini_hochberg(torch.cat([p[place] for place in range(len(found))])) if found else torch.empty(0)
    return [part.view(-1, 2) for part in q.split([each.top.strength.numel() for each in found])]


def _root(reader: Reader) -> Float[Tensor, "d_model d_model"]:
    """L^T of E E^T = L L^T, through any basis: the length of L^T p is that of p's scores over all tokens."""
    moments = reader_moments(reader)
    values, vectors = torch.linalg.eigh(moments.count * moments.second.cpu())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _unit(rows: Float[Tensor, "direction d_model"]) -> Float[Tensor, "direction d_model"]:
    return (rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)).float()


def _block(subject: Subject, name: str, layer: int) -> Block:
    return block_of(subject.weights, GROUPS[name], layer, folding=subject.folding)


def _mixed(subject: Subject, block: Block, k: int) -> RandomDirections:
    reader = subject.read if block.group.end == "read" else subject.write
    return read_random(mixtures(block.rows, _DRAWS, int(hash_parts(0, block.layer or 0))), reader, k)
