"""One feed-forward unit, for a person who asks: what it looks for, what it writes, of which type it is, which pairs of tokens open it.

Composed of what the other modules measure; types of all units side by side belong in `types`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from microtome.core import UnitAddress, WeightAddress
from microtome.readout import named
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.types import MISMATCHED, TYPES, types_of, unit_cosines
from microtome.vocabulary.vector_reading import Beside, Reading, Word, beside, read_vector

__all__ = ["Opening", "UnitReading", "opening_pairs", "read_unit"]

_SHOWN: Final = 3
_SAYS: Final = {
    "++": "gate open, written as it is",
    "+-": "gate open, written reversed",
    "--": "gate closed, little passes",
    "-+": "gate closed, little passes",
}


@dataclass(frozen=True)
class Opening:
    """Two tokens that together open a unit, one for its gate and one for its amplitude, and the product of both scores.

    `control` is the product at the same ranks of mixtures of the layer's gates and of its amplitudes.
    """

    gate: str
    up: str
    score: float
    control: float


@dataclass(frozen=True)
class UnitReading:
    """A unit in the vocabulary: `vectors` are W_gate, W_up and W_out, or W_in and W_out of a plain one, which has no `type` and no `opens`.

    `cosines` between them are by name, beside those of vectors of different units of the layer; types are those of `types.types_of`.
    A unit of which a vector is zero, as a pruned one, has no cosines and no type.
    """

    name: str
    type: str | None
    vectors: tuple[Reading, ...]
    cosines: Mapping[str, Beside]
    opens: Mapping[str, tuple[Opening, ...]]

    def __str__(self) -> str:
        zero = [each.name for each in self.vectors if not each.norm]
        lines = [f"{self.name}  ({f'no type: {zero[0]} is zero' if zero else self.type or 'a plain unit'})"]
        lines += ["", f"cosines, beside {MISMATCHED}"] if self.cosines else []
        lines += [f"  {name.removesuffix('_cosine').replace('_', '-'):<10} {found}" for name, found in self.cosines.items()]
        lines += [line for each in self.vectors for line in ("", str(each))]
        if self.opens:
            lines += ["", "pairs of tokens, for the gate and for the amplitude: product of both scores (control)"]
        for signs, pairs in self.opens.items():
            lines.append(f"  {signs} {_SAYS[signs]}")
            lines += [f"    {e.score:7.2f} {f'({e.control:.2f})':>8}  {named(e.gate)} × {named(e.up)}" for e in pairs[:_SHOWN]]
        return "\n".join(lines)


def read_unit(subject: Subject, address: UnitAddress, k: int) -> UnitReading:
    """Read a unit that the model has, with `k` tokens at each end and `k` pairs.

    Cost: that of `read_vector` for each of its vectors, and one more read of the layer's feed-forward weights.
    """
    layer, gated = address.layer, subject.weights.has("W_gate", address.layer)
    assert layer is not None, "units are in layers"
    names = ("W_gate", "W_up", "W_out") if gated else ("W_in", "W_out")
    vectors = [read_vector(subject, WeightAddress(name, layer, address.index, expert=address.expert), k) for name in names]
    (found,), whole = unit_cosines(subject, [layer]), all(each.norm for each in vectors)
    place = found.addresses.index(str(address))
    cosines = {name: beside(float(each[place]), found.draws[name]) for name, each in found.cosines.items() if whole}
    return UnitReading(
        name=str(address),
        type=TYPES[int(types_of(found)[place])] if gated and whole else None,
        vectors=tuple(vectors),
        cosines=cosines,
        opens=opening_pairs(vectors[0], vectors[1], k) if gated else {},
    )


def opening_pairs(gate: Reading, up: Reading, k: int) -> dict[str, tuple[Opening, ...]]:
    """The k pairs of tokens with the largest products of gate and amplitude scores, for each combination of their signs.

    At "++" both find their token, so that the value is written; at "+-" the gate opens and the amplitude is negative, so that it is
    taken away; "--" and "-+" have a closed gate, behind which activations like SiLU and GELU let little through. Exact for readings of
    k tokens or more: the k best products are of the first tokens of both sides.
    """
    found = {}
    for signs in _SAYS:
        one, other = (_on_its_side(each, sign) for each, sign in zip((gate, up), signs, strict=True))
        pairs = [Opening(a.text, b.text, a.score * b.score, a.control * b.control) for a in one for b in other]
        found[signs] = tuple(sorted(pairs, key=lambda pair: -abs(pair.score))[:k])
    return found


def _on_its_side(reading: Reading, sign: str) -> list[Word]:
    """The first tokens at an end, of those that score on that side of zero."""
    words = reading.promoted if sign == "+" else reading.demoted
    return [word for word in words if (word.score > 0) == (sign == "+") and word.score]
