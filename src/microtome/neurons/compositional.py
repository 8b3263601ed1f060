"""Compositional explanations: which formula of concepts holds of the rows at which a unit is active?

A unit is active beyond a threshold of its own, at either end: h > tau, or h < -tau. In this module the axis end has the two, h and -h;
`length` counts how many concepts a formula has at most, `concept` the concepts. Formulas and their search are in `formulas`, concepts in
`primitives`; how well single labels are told by units is measured in `probes`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.neurons.formulas import Beam, Formula, Scored, beam_search, overlap_of
from microtome.neurons.primitives import Primitives
from microtome.numerics import benjamini_hochberg, permutation_p
from microtome.numerics.bits import Bits, packed

__all__ = ["MU_ANDREAS", "Compositional", "Explanations", "explained", "explained_masks", "thresholds"]

_NEAREST: Final = 0.05
"""The least part of a half that masks are turned round by."""


@dataclass(frozen=True)
class Compositional:
    """How formulas are searched, from how many active rows of the discover half on, and how many draws judge each.

    Errors: `Refusal` for fewer than one row or draw.
    """

    beam: Beam = Beam()
    fewest: int = 50
    draws: int = 199
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fewest < 1 or self.draws < 1:
            why = f"{self.fewest} active rows and {self.draws} draws leave nothing to compare"
            raise Refusal("compositional explanations", why=why, instead="use 1 or more of each")


MU_ANDREAS: Final = Compositional(Beam(longest=5, width=10, penalty=1.0, leaves="overlapping"), fewest=500)
"""As Mu and Andreas explain units of language models, active above 0; their units are plain, and half of a gated unit's rows are above 0."""


@dataclass(frozen=True, eq=False)
class Explanations:
    """Of every mask with rows enough: its `unit` and `end`, and the best formula of at most 1, 2, ... concepts by the discover half.

    `discover` and `confirm` are overlaps, |both| / |either|, on the half that chose the formula and on the other. The longest formula is
    judged on the confirm half twice: `chance` is its mean overlap with the mask turned round, `p` how often that reaches its own, and `q`
    over masks; `control` is what the same search finds for a mask turned round, on the confirm half (`control_discover` on the other, where
    it flatters itself alike). `active` counts rows by half. A mask that no concept overlaps has no formula, and NaN. `skipped`
    masks had fewer rows than were asked for.
    """

    unit: Int64[Tensor, " k"]
    end: Int64[Tensor, " k"]
    active: Int64[Tensor, "half k"]
    formulas: tuple[tuple[Formula, ...], ...]
    discover: Float64[Tensor, "length k"]
    confirm: Float64[Tensor, "length k"]
    chance: Float64[Tensor, " k"]
    p: Float64[Tensor, " k"]
    q: Float64[Tensor, " k"]
    control_discover: Float64[Tensor, " k"]
    control: Float64[Tensor, " k"]
    names: tuple[str, ...]
    skipped: int
    settings: Compositional

    def text(self, row: int, length: int | None = None) -> str:
        """The formula of at most `length` concepts, the longest by default; "" where there is none."""
        found = self.formulas[row]
        return found[-1 if length is None else length - 1].text(self.names) if found else ""

    def order(self) -> Int64[Tensor, " k"]:
        """Rows by how far the longest formula's overlap on the confirm half is above chance, best first."""
        return (self.confirm[-1] - self.chance).nan_to_num(-torch.inf).sort(descending=True, stable=True).indices


def thresholds(x: Float[Tensor, "row unit"], half: Int[Tensor, " row"], share: float = 0.02) -> Float[Tensor, " unit"]:
    """The tau that |h| exceeds on a `share` of the discover half's rows: the same for a unit and its reverse, whatever its scale.

    Errors: `Refusal` for a share that is no row, or all rows.
    """
    mine = x[half == Half.DISCOVER].abs()
    above = round(share * len(mine))
    if not 0 < above < len(mine):
        why = f"{share:g} of {len(mine)} rows are {above}"
        raise Refusal("thresholds of units", why=why, instead="give more rows, or a share between 0 and 1")
    return mine.float().kthvalue(len(mine) - above, 0).values


def explained(
    x: Float[Tensor, "row unit"],
    primitives: Primitives,
    half: Int[Tensor, " row"],
    tau: Float[Tensor, " unit"] | None = None,
    settings: Compositional = Compositional(),
) -> Explanations:
    """Explain both ends of every unit, by default of the rows where |h| is among its largest 2 %. Rows are in the order of the text.

    Source: Mu and Andreas 2020, arXiv:2006.14032, section 2.
    Errors: as of `explained_masks`.
    """
    tau = thresholds(x, half) if tau is None else tau
    ends = torch.stack([x > tau, x < -tau]).mT
    return explained_masks(ends, primitives, half, settings)


def explained_masks(
    masks: Bool[Tensor, "end unit row"],
    primitives: Primitives,
    half: Int[Tensor, " row"],
    settings: Compositional = Compositional(),
) -> Explanations:
    """The same for masks of any making: of ends, of the quadrants of a gated unit.

    Masks are turned round within their half, by at least a twentieth of it: how many rows they have, and in what runs, stays.
    Errors: `Refusal` for rows that do not fit, for a half without rows, and for no concept.
    Cost: two searches for each mask, and `draws` intersections. 20,000 rows and 500 concepts take about 20 ms a mask.
    """
    sides = _sides(masks, primitives, half)
    active = torch.stack([masks[..., rows].sum(2) for rows in sides])
    end, unit = (active[0] >= settings.fewest).nonzero(as_tuple=True)
    order = unit.argsort(stable=True)
    end, unit = end[order], unit[order]
    concepts = [packed(primitives.mask[:, rows]) for rows in sides]
    own = [masks[..., rows][end, unit] for rows in sides]
    shifts = [_shifts(len(rows), settings) for rows in sides]
    found = _searched(packed(own[0]), concepts[0], settings.beam)
    turned = [packed(mask.roll(shift[0], 1)) for mask, shift in zip(own, shifts, strict=True)]
    control = _searched(turned[0], concepts[0], settings.beam)
    held = [_held(found, length, concepts[1]) for length in range(1, settings.beam.longest + 1)]
    confirm = torch.stack([_judged(each, packed(own[1])) for each in held])
    null = torch.stack([_judged(held[-1], packed(own[1].roll(shift, 1))) for shift in shifts[1]])
    p = permutation_p(confirm[-1], null)
    return Explanations(
        unit=unit,
        end=end,
        active=active[:, end, unit],
        formulas=tuple(tuple(each.formula for each in scored) for scored in found),
        discover=_overlaps(found, settings.beam.longest),
        confirm=confirm,
        chance=null.mean(0),
        p=p,
        q=benjamini_hochberg(p),
        control_discover=_overlaps(control, settings.beam.longest)[-1],
        control=_judged(_held(control, settings.beam.longest, concepts[1]), turned[1]),
        names=primitives.names,
        skipped=masks.shape[0] * masks.shape[1] - len(unit),
        settings=settings,
    )


def _searched(masks: Bits, concepts: Bits, beam: Beam) -> list[tuple[Scored, ...]]:
    """The search of every mask, on as many threads as torch has."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda mask: beam_search(mask, concepts, beam), masks))


def _overlaps(found: Sequence[Sequence[Scored]], longest: int) -> Float64[Tensor, "length k"]:
    rows = [[each.overlap for each in scored] or [float("nan")] * longest for scored in found]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, longest).T


def _held(found: Sequence[Sequence[Scored]], length: int, concepts: Bits) -> tuple[Bits, NDArray[np.bool_]]:
    """Masks of the formulas of a length on other rows than those that chose them, and which masks have no formula."""
    nothing = np.zeros(concepts.shape[1], np.uint64)
    rows = [scored[length - 1].formula.of(concepts) if scored else nothing for scored in found]
    return np.stack(rows) if rows else np.zeros((0, len(nothing)), np.uint64), np.array([not scored for scored in found], bool)


def _judged(held: tuple[Bits, NDArray[np.bool_]], masks: Bits) -> Float64[Tensor, " k"]:
    bits, without = held
    return torch.from_numpy(np.where(without, np.nan, overlap_of(bits, masks)))


def _shifts(rows: int, settings: Compositional) -> list[int]:
    """How far each draw turns masks round."""
    generator = torch.Generator().manual_seed(settings.seed)
    part = _NEAREST + (1 - 2 * _NEAREST) * torch.rand(settings.draws, generator=generator, dtype=torch.float64)
    return (part * rows).long().tolist()


def _sides(masks: Bool[Tensor, "end unit row"], primitives: Primitives, half: Int[Tensor, " row"]) -> list[Int64[Tensor, " _"]]:
    """Rows of each half."""
    sides = [(half == side).nonzero()[:, 0] for side in Half]
    count = masks.shape[2]
    if len(half) != count or primitives.mask.shape[1] != count or not len(primitives.names) or not min(map(len, sides)):
        why = (
            f"there are {count} rows of units, {primitives.mask.shape[1]} of {len(primitives.names)} concepts, and halves of "
            f"{len(sides[0])} and {len(sides[1])}"
        )
        raise Refusal(
            "compositional explanations", why=why, instead="give concepts of the same rows, in documents of both halves"
        )
    return sides
