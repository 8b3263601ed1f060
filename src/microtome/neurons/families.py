"""Families of units: how much of a unit's variance one yes-or-no question about the token explains.

Questions are about the token's spelling, the spelling of the one before, repetition and place. Which single token a unit detects is
asked in `detectors`. The axis `test` counts questions, `half` the halves of the documents; `draw` 0 is the text itself, the others
have the answers of every window turned round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.examples.entries import to_device
from microtome.numerics import benjamini_hochberg, window_shifts
from microtome.readout import pooled_chance
from microtome.readout.spellings import SPELLING

__all__ = ["Answered", "Families", "FamilyMoments", "explained", "families", "spelling_tests", "question_names"]

_QUARTERS: Final = 4
_ROWS: Final = 4096


def spelling_tests(texts: Sequence[str]) -> Bool[Tensor, "test vocab"]:
    """The answers to `SPELLING` for every token of a vocabulary (`readout.texts_of`)."""
    return torch.tensor([[bool(asked(text)) for text in texts] for asked in SPELLING.values()])


def question_names() -> tuple[str, ...]:
    """All questions in the order of the axis `test`."""
    quarters = (f"is in quarter {quarter + 1} of the window" for quarter in range(_QUARTERS))
    return (*SPELLING, *(f"follows one that {name}" for name in SPELLING), "repeats the one before", *quarters)


@dataclass(frozen=True, eq=False)
class Answered:
    """Per half: tokens, how many have yes for an answer, and sums of activations over all, of their squares, and over those with yes."""

    tokens: Int64[Tensor, " half"]
    yes: Int64[Tensor, "half test"]
    total: Float64[Tensor, "half unit"]
    square: Float64[Tensor, "half unit"]
    inside: Float64[Tensor, "half draw test unit"]


@dataclass(frozen=True)
class FamilyMoments:
    """Sums of activations by the answers to every question, for the text and for `draws` circular shifts of each window's answers.

    `tests` are the answers by token id; a window's quarters are of `window` places.
    Cost: 2 (1 + draws) FLOP a question, unit and token. Memory: 16 (1 + draws) bytes a question and unit.
    """

    kind: ClassVar[str] = "neurons.families"
    version: ClassVar[int] = 1

    basis: Basis
    tests: Bool[Tensor, "test vocab"]
    window: int
    draws: int = 8
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the basis."""
        return self.basis.sites

    @property
    def questions(self) -> int:
        """Each about the token and about the one before, repetition, and quarters."""
        return 2 * len(self.tests) + 1 + _QUARTERS

    def init(self) -> State:
        """No token seen."""
        units, halves = self.basis.units, len(Half)
        return {
            "tokens": torch.zeros(halves, dtype=torch.int64),
            "yes": torch.zeros(halves, self.questions, dtype=torch.int64),
            "total": torch.zeros(halves, units, dtype=torch.float64),
            "square": torch.zeros(halves, units, dtype=torch.float64),
            "inside": torch.zeros(halves, 1 + self.draws, self.questions, units, dtype=torch.float64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Add the batch's tokens."""
        x = self.basis.encode(values)
        to_device(state, x.device)
        row, place = batch.counted(self.roles).to(x.device).nonzero(as_tuple=True)
        if not len(row):
            return
        answers, half = self._answers(batch).to(x.device)[row, place], batch.half.to(x.device)[row]
        shifts = window_shifts(batch.window.to(x.device)[row], self.draws, self.seed)
        orders = [torch.arange(len(row), device=x.device), *shifts]
        for each in Half:
            mine = (half == int(each)).nonzero()[:, 0]
            state["tokens"][each] += len(mine)
            state["yes"][each] += answers[mine].sum(0)
            for rows in mine.split(_ROWS):
                found = x[row[rows], place[rows]].float()
                state["total"][each] += found.sum(0, dtype=torch.float64)
                state["square"][each] += found.double().square().sum(0)
                for draw, order in enumerate(orders):
                    state["inside"][each, draw] += (answers[order[rows]].float().T @ found).double()

    def _answers(self, batch: Batch) -> Bool[Tensor, "window token test"]:
        """What every question says of every token; nothing comes before a window."""
        ids = batch.ids.cpu()
        spelled = self.tests.T[ids]
        before, same = torch.zeros_like(spelled), torch.zeros_like(ids, dtype=torch.bool)
        before[:, 1:], same[:, 1:] = spelled[:, :-1], ids[:, 1:] == ids[:, :-1]
        quarter = (torch.arange(ids.shape[1]) * _QUARTERS // self.window).clamp_max(_QUARTERS - 1)
        quarters = (quarter[:, None] == torch.arange(_QUARTERS)).expand(len(ids), -1, -1)
        return torch.cat([spelled, before, same[..., None], quarters], 2)

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {name: sums + later[name].to(sums.device) for name, sums in state.items()}

    def result(self, state: State) -> Answered:
        """The sums, on the host."""
        return Answered(**{name: sums.cpu() for name, sums in state.items()})


@dataclass(frozen=True, eq=False)
class Families:
    """Of each unit the question that explains most in the discover half (-1: none), and what it explains in the confirm half.

    `correlation` is that of activation and answer, `explained` its square, the share of variance; `control` is the mean share that the
    shifted answers explain. `q` is over units of the layer, from `p`. NaN where the activation or the answer is constant in a half.
    """

    test: Int64[Tensor, " unit"]
    correlation: Float64[Tensor, " unit"]
    control: Float64[Tensor, " unit"]
    q: Float64[Tensor, " unit"]
    p: Float64[Tensor, " unit"]

    @property
    def explained(self) -> Float64[Tensor, " unit"]:
        """Share of variance."""
        return self.correlation.square()


def families(found: Answered) -> Families:
    """The family of every unit, judged against answers that were turned round in their windows.

    A shift keeps how often a window has each answer and in what runs, and how active the unit is in it. p is two-sided, from the
    shifts of all questions and units, each in its own width (`readout.pooled_chance`).
    Errors: `Refusal` for fewer than three draws.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on families of neurons.
    """
    if found.inside.shape[1] < 4:
        why = f"{found.inside.shape[1] - 1} draws have no width of their own"
        raise Refusal("families of units", why=why, instead="use three or more")
    discover, confirm = (explained(found, half) for half in (Half.DISCOVER, Half.CONFIRM))
    both = torch.where(confirm[0].isnan(), torch.nan, discover[0].square())
    best, test = both.nan_to_num(-1).max(0)
    tested = best >= 0
    p = torch.full(confirm[0].shape, torch.nan, dtype=torch.float64)
    valid = ~confirm.isnan().any(0)
    if bool(valid.any()):
        p[valid] = pooled_chance([confirm[0][valid]], [confirm[1:][:, valid]], "both")[0].double()
    unit = torch.arange(len(test))
    nothing = torch.where(tested, 0.0, torch.nan)
    return Families(
        torch.where(tested, test, -1),
        confirm[0, test, unit] + nothing,
        confirm[1:, test, unit].square().mean(0) + nothing,
        benjamini_hochberg(p[test, unit] + nothing),
        p[test, unit] + nothing,
    )


def explained(found: Answered, half: Half) -> Float64[Tensor, "draw test unit"]:
    """Correlation of activation and answer in a half: its square is 1 - [(1-b) var(h | no) + b var(h | yes)] / var(h), b the share of yes.

    Source: Gurnee et al. 2024, arXiv:2401.12181, on families of neurons.
    """
    tokens = found.tokens[half].double().clamp_min(1)
    mean = found.total[half] / tokens
    variance = found.square[half] / tokens - mean.square()
    spread = torch.where(variance > 1e-12 * found.square[half] / tokens, variance, torch.nan).sqrt()
    yes = found.yes[half].double()
    share = torch.where((yes > 0) & (yes < tokens), yes / tokens, torch.nan)[:, None]
    return (share / (1 - share)).sqrt() * (found.inside[half] / yes.clamp_min(1)[:, None] - mean) / spread
