"""What kind of feed-forward unit each is, by cosines between what it looks for and what it writes.

A gated unit has a gate, an amplitude (up) and a value (down). Where the value points along the amplitude it enriches what it finds,
where it points against it it depletes it; whether the gate is along the amplitude says if it does so of its own accord or on a
condition. Overlaps of their token lists are those of `overlap`, pairs of tokens that open a unit those of `unit_reading`.

Axes of this module: `unit` is a unit of a block.

Source: Gerstner and Schuetze 2025, arXiv:2505.17936, section 3, whose public code (count_categories) says how the types are bounded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.model.allocator import give_back_freed_memory
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import central_interval, pooled_chance
from microtome.store.schemas import TABLES
from microtome.vocabulary.parameters import GROUPS, block_of
from microtome.vocabulary.subject import Subject
from microtome.vocabulary.tables import stat_table

__all__ = [
    "MISMATCHED",
    "TYPES",
    "UnitCosines",
    "cosine_rows",
    "type_rows",
    "types_of",
    "unit_cosines",
]

THRESHOLD: Final = 0.5
"""A cosine beyond it counts as along, or against."""
MISMATCHED: Final = "vectors of different units of the layer"

TYPES: Final = (
    "enrichment",
    "atypical enrichment",
    "conditional enrichment",
    "atypical conditional enrichment",
    "proportional change",
    "atypical proportional change",
    "orthogonal output",
    "depletion",
    "atypical depletion",
    "conditional depletion",
    "atypical conditional depletion",
)
_PAIRS: Final = {
    "gate_up_cosine": ("W_gate", "W_up"),
    "up_down_cosine": ("W_up", "W_out"),
    "gate_down_cosine": ("W_gate", "W_out"),
}
_PLAIN: Final = {"in_out_cosine": ("W_in", "W_out")}


@dataclass(frozen=True, eq=False)
class UnitCosines:
    """Cosines of the vectors of the units of a layer, by the name of the pair; `draws` those of vectors of different units."""

    layer: int
    addresses: tuple[str, ...]
    cosines: Mapping[str, Float[Tensor, " unit"]]
    draws: Mapping[str, Float[Tensor, " draw"]]


def unit_cosines(
    subject: Subject, layers: Iterable[int] | None = None, *, draws: int = 4096, seed: int = 0
) -> Iterator[UnitCosines]:
    """Cosines of every feed-forward unit, a layer at a time; of experts one after the other.

    Folded, they are those of what the stream meets: gains of norms are in. The control are `draws` pairs of vectors of different units.
    Errors: `Refusal` for a model without feed-forward units whose vectors are known.
    Cost: one read of the feed-forward weights.
    """
    weights, shape = subject.weights, subject.shape
    pairs = _PAIRS if weights.has("W_gate", 0) else _PLAIN
    if not all(weights.has(name, 0) for both in pairs.values() for name in both):
        raise Refusal(
            f"types of units of {subject.name}",
            why="its feed-forward weights are not known",
            instead="use a model that has them",
        )
    for layer in range(shape.layers) if layers is None else layers:
        give_back_freed_memory()
        names = dict.fromkeys(name for both in pairs.values() for name in both)
        units = {name: _unit(block_of(weights, GROUPS[name], layer, folding=subject.folding).rows) for name in names}
        count = len(units["W_out"])
        one, other = _different(count, draws, int(hash_parts(seed, layer)))
        cosines = {stat: (units[a] * units[b]).sum(1) for stat, (a, b) in pairs.items()}
        null = {stat: (units[a][one] * units[b][other]).sum(1) for stat, (a, b) in pairs.items()}
        each = count // max(shape.experts, 1)
        experts: Sequence[int | None] = range(shape.experts) if shape.experts else (None,)
        addresses = tuple(
            str(UnitAddress("neurons", index, layer=layer, expert=expert)) for expert in experts for index in range(each)
        )
        yield UnitCosines(layer, addresses, cosines, null)


def types_of(found: UnitCosines, threshold: float = THRESHOLD) -> Int[Tensor, " unit"]:
    """The type of each unit of gated blocks, as an index of `TYPES`.

        up-down    beyond t: enrichment       below -t: depletion       else: the value is orthogonal to the amplitude
        gate-down  beyond t by size: of its own accord; else: conditional; with an orthogonal value, proportional change, else orthogonal
        atypical   gate-up does not fit: it is beyond t by size where the gate is said to be a condition, or not where it is not; and
                   where an enriching gate points against the value, or a depleting one along it

    Errors: `Refusal` for plain units, which have no gate.
    """
    if "gate_up_cosine" not in found.cosines:
        raise Refusal(
            "types of plain units", why="they have no gate", instead="use in_out_cosine: above 0 enriches, below 0 depletes"
        )
    gate_up, up_down, gate_down = (found.cosines[name] for name in _PAIRS)
    near, gated = up_down.abs() > threshold, gate_down.abs() > threshold
    alike = gate_up.abs() > threshold
    agreeing = alike & (gate_down.sign() == up_down.sign())
    enriching = torch.where(gated, torch.where(agreeing, 0, 1), torch.where(alike, 3, 2))
    orthogonal = torch.where(gated, torch.where(alike, 5, 4), 6)
    return torch.where(near, torch.where(up_down > 0, enriching, _DEPLETING[enriching]), orthogonal)


_DEPLETING: Final = torch.tensor([7, 8, 9, 10])


def cosine_rows(found: Sequence[UnitCosines], run: str) -> pa.Table:
    """Rows of `unit_stats`: every cosine of every unit; q over all units of a cosine, both tails."""
    tables = []
    for stat in found[0].cosines:
        p = pooled_chance([each.cosines[stat] for each in found], [each.draws[stat][:, None] for each in found], "both")
        q = benjamini_hochberg(torch.cat(p)).split([len(part) for part in p])
        for each, quality in zip(found, q, strict=True):
            against = (float(each.draws[stat].double().mean()), MISMATCHED)
            tables.append(stat_table(each.addresses, stat, each.cosines[stat], against, run, quality))
    return pa.concat_tables(tables, promote_options="none").unify_dictionaries()


def type_rows(found: Sequence[UnitCosines], run: str, *, draws: int = 200, seed: int = 0) -> pa.Table:
    """Rows of `vocabulary_stats`: the share of each type of gated unit in a layer, and the mean of each cosine of any.

    The control of shares are units put together of a gate, an amplitude and a value of different units, independently; that of means,
    vectors of different units. q over all rows of a kind, from the tail of the control's draws.
    """
    rows = []
    for each in found:
        generator = torch.Generator().manual_seed(int(hash_parts(seed, each.layer)))
        count = len(each.addresses)
        drawn = {stat: null[torch.randint(len(null), (draws, count), generator=generator)] for stat, null in each.draws.items()}
        measures = {
            f"mean_{stat}": (float(cosine.double().mean()), drawn[stat].double().mean(1))
            for stat, cosine in each.cosines.items()
        }
        if "gate_up_cosine" in each.cosines:
            kinds = types_of(each)
            null = types_of(UnitCosines(each.layer, (), {stat: part.flatten() for stat, part in drawn.items()}, {})).view(
                draws, count
            )
            for number, name in enumerate(TYPES):
                share = float((kinds == number).double().mean())
                measures[f"type:{name}"] = (share, (null == number).double().mean(1))
        for stat, (value, control) in measures.items():
            low, high = central_interval(control).tolist()
            far = (control - control.mean()).abs() >= abs(value - float(control.mean()))
            rows.append(
                {
                    "run": run,
                    "group": "units",
                    "layer": each.layer,
                    "stat": stat,
                    "value": value,
                    "control": float(control.mean()),
                    "control_kind": MISMATCHED,
                    "control_lo": low,
                    "control_hi": high,
                    "q": (1 + int(far.sum())) / (1 + draws),
                }  # fmt: skip
            )
    q = benjamini_hochberg(torch.tensor([row["q"] for row in rows], dtype=torch.float64)).tolist()
    rows = [{**row, "q": quality} for row, quality in zip(rows, q, strict=True)]
    return pa.Table.from_pylist(rows, TABLES["vocabulary_stats"].schema)


def _different(units: int, draws: int, seed: int) -> tuple[Int[Tensor, " draw"], Int[Tensor, " draw"]]:
    """Two different units of a layer, `draws` times."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(units, (draws,), generator=generator)
    return one, (one + torch.randint(1, max(units, 2), (draws,), generator=generator)) % units


def _unit(rows: Float[Tensor, "unit d_model"]) -> Float[Tensor, "unit d_model"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
