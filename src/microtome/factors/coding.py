"""Exact sparse codes: of which few factors, and of how much of each, a vector is made.

A dictionary has factors as rows; a code a >= 0 of a vector x makes a Phi of it, and what is left over is small. Here the rows are given
and codes are sought: by the lasso, which is convex and solved until its duality gap says that it is, or greedily for a number of factors. How
dictionaries are learnt, scaled and stored belongs elsewhere; what an encoder guesses in one product is no code in this sense, but a start for one.

Source: Yun et al. 2021, arXiv:2103.15949, section 2.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal

__all__ = ["Coded", "Greedy", "Lasso", "coded", "duality_gap", "greedily", "refitted", "steepness"]

_LOOK: Final = 10
"""Steps between two looks at the gap, which costs as much as a step."""
_SLACK: Final = 1 + 1e-6
"""By how much the largest eigenvalue is rounded up, so that no step is too long."""
_ROOM: Final = 1 << 24
"""Numbers of the factors that are gathered at a time for refits."""


@dataclass(frozen=True)
class Lasso:
    """|x - a Phi|^2 / 2 + penalty sum(a) is smallest over a >= 0, up to `tolerance` of |x|^2 / 2; `steps` is where the search ends at the latest.

    The penalty is in units of x and does not grow with it: what is to mean the same at all layers is scaled before.
    Errors: `Refusal` for a penalty or tolerance that is not above 0, and for no step.
    """

    penalty: float
    tolerance: float = 1e-4
    steps: int = 1000

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.tolerance > 0 and self.steps > 0):
            why = "penalty, tolerance and steps are not all above 0"
            raise Refusal(f"{self}", why=why, instead="give positive numbers")


@dataclass(frozen=True)
class Greedy:
    """At most `factors` for each vector, one after the other, the next where the rest points most.

    `matching` refits all coefficients after each (orthogonal matching pursuit, non-negative); `gradient` moves them along their gradient by the
    best step, which is cheaper and nearly as good.
    Errors: `Refusal` for fewer than one.
    """

    factors: int
    fit: Literal["matching", "gradient"] = "matching"

    def __post_init__(self) -> None:
        if self.factors < 1:
            raise Refusal(f"codes of {self.factors} factors", why="there is nothing to code with", instead="name one or more")


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes; `gap` is the duality gap of each over |x|^2 / 2 (0 for a vector of zeros), `steps` how many were taken for the slowest."""

    values: Float[Tensor, "row unit"]
    gap: Float[Tensor, " row"]
    steps: int


def steepness(dictionary: Float[Tensor, "unit d_model"]) -> float:
    """The largest eigenvalue of Phi' Phi, by which steps are divided: once for a dictionary, of the smaller of its two products."""
    wide = dictionary.double()
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return float(torch.linalg.eigvalsh(gram)[-1]) * _SLACK


def coded(
    dictionary: Float[Tensor, "unit d_model"],
    x: Float[Tensor, "row d_model"],
    settings: Lasso,
    start: Float[Tensor, "row unit"] | None = None,
    *,
    steep: float | None = None,
) -> Coded:
    """The lasso's codes by accelerated proximal steps, restarted for each vector where momentum points uphill; vectors that are done are left out.

    `start` is a code to begin from (another layer's, an encoder's); `steep` the dictionary's `steepness`, if it is known. float32 in, float32 out:
    gaps below 1e-6 of |x|^2 / 2 are rounding.
    Source: Beck and Teboulle 2009, doi:10.1137/080716542, equations 4.1 to 4.3; O'Donoghue and Candes 2015, arXiv:1204.3982, on restarts.
    Errors: `Refusal` for vectors of another width, or that are not finite.
    Cost: for each step and vector 4 d factors FLOP, or 2 factors^2 where that is less.
    """
    _require_alike(dictionary, x)
    length = steep or steepness(dictionary)
    half = x.square().sum(1) / 2
    found = torch.zeros(len(x), len(dictionary), dtype=x.dtype, device=x.device) if start is None else start.clamp(min=0)
    gaps = torch.zeros_like(half)
    at = half.nonzero()[:, 0]
    found[half == 0] = 0
    part = _Part.of(dictionary, x[at], found[at])
    momentum, step = torch.ones(len(at), 1, dtype=x.dtype, device=x.device), 0
    while len(at):
        if step % _LOOK == 0 or step == settings.steps:
            gap = part.gap(settings.penalty) / half[at]
            done = (gap <= settings.tolerance) | torch.tensor(step == settings.steps, device=x.device)
            found[at[done]], gaps[at[done]] = part.code[done], gap[done]
            at, part, momentum = at[~done], part.only(~done), momentum[~done]
            if not len(at):
                break
        moved = (part.ahead + (part.pull(part.ahead) - settings.penalty) / length).clamp_(min=0)
        uphill = ((part.ahead - moved) * (moved - part.code)).sum(1, keepdim=True) > 0
        later = torch.where(uphill, 1.0, (1 + (1 + 4 * momentum.square()).sqrt()) / 2).to(x.dtype)
        weight = torch.where(uphill, 0.0, (momentum - 1) / later).to(x.dtype)
        part.ahead, part.code, momentum = moved + weight * (moved - part.code), moved, later
        step += 1
    return Coded(found, gaps, step)


@dataclass(eq=False)
class _Part:
    """Vectors that are still searched for: where their search is, where its momentum has it look, and the gradient there."""

    dictionary: Float[Tensor, "unit d_model"]
    gram: Float[Tensor, "unit other"] | None
    x: Float[Tensor, "row d_model"]
    target: Float[Tensor, "row unit"]
    code: Float[Tensor, "row unit"]
    ahead: Float[Tensor, "row unit"]

    @staticmethod
    def of(dictionary: Tensor, x: Tensor, code: Tensor) -> "_Part":
        few = len(dictionary) < 2 * dictionary.shape[1]
        return _Part(dictionary, dictionary @ dictionary.T if few else None, x, x @ dictionary.T, code, code)

    def pull(self, code: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
        """What is left over of each vector, as each factor sees it."""
        if self.gram is not None:
            return self.target - code @ self.gram
        return (self.x - code @ self.dictionary) @ self.dictionary.T

    def gap(self, penalty: float) -> Float[Tensor, " row"]:
        return duality_gap(self.dictionary, self.x, self.code, penalty)

    def only(self, rows: Bool[Tensor, " row"]) -> "_Part":
        kept = (each[rows] for each in (self.x, self.target, self.code, self.ahead))
        return _Part(self.dictionary, self.gram, *kept)


def duality_gap(
    dictionary: Float[Tensor, "unit d_model"], x: Float[Tensor, "row d_model"], code: Float[Tensor, "row unit"], penalty: float
) -> Float[Tensor, " row"]:
    """By how much codes miss the lasso's minimum at most: objective less its dual at the rest r, made as short as the constraints say.

    Dual: x . u - |u|^2 / 2 over all u with u . Phi_c <= penalty for every factor; here u = s r, s = min(1, penalty / max_c r . Phi_c).
    """
    rest = x - code @ dictionary
    most = (rest @ dictionary.T).amax(1)
    share = torch.where(most > penalty, penalty / most, 1.0).to(x.dtype)
    square = rest.square().sum(1)
    objective = square / 2 + penalty * code.sum(1)
    return (objective - share * (x * rest).sum(1) + share.square() * square / 2).clamp(min=0)


def greedily(
    dictionary: Float[Tensor, "unit d_model"], x: Float[Tensor, "row d_model"], settings: Greedy
) -> Float[Tensor, "row unit"]:
    """Codes of a few factors. A vector gets fewer where no further factor points along what is left of it.

    Source: Bruckstein et al. 2008, doi:10.1109/TIT.2008.929920, on non-negative matching pursuit; Blumensath and Davies 2008,
    doi:10.1109/TSP.2007.916124, on gradient pursuit.
    Errors: `Refusal` for vectors of another width, or that are not finite, and for more factors than there are.
    Cost: for each factor of a code 2 d factors FLOP a vector; with `matching` also a refit.
    """
    _require_alike(dictionary, x)
    if settings.factors > len(dictionary):
        why = f"the dictionary has {len(dictionary)}"
        raise Refusal(f"codes of {settings.factors} factors", why=why, instead="name no more than it has")
    code = torch.zeros(len(x), len(dictionary), dtype=x.dtype, device=x.device)
    chosen = torch.zeros_like(code, dtype=torch.bool)
    for _ in range(settings.factors):
        rest = x - code @ dictionary
        pull = rest @ dictionary.T
        best, factor = pull.masked_fill(chosen, -torch.inf).max(1)
        some = (best > 0).nonzero()[:, 0]
        if not len(some):
            break
        chosen[some, factor[some]] = True
        if settings.fit == "matching":
            code[some] = _refit(dictionary, x[some], chosen[some])
            continue
        along = torch.where(chosen[some], pull[some], 0)
        made = along @ dictionary
        length = (made * rest[some]).sum(1) / made.square().sum(1).clamp(min=torch.finfo(x.dtype).tiny)
        code[some] = (code[some] + length[:, None] * along).clamp(min=0)
    return code


def refitted(
    dictionary: Float[Tensor, "unit d_model"], x: Float[Tensor, "row d_model"], code: Float[Tensor, "row unit"]
) -> Float[Tensor, "row unit"]:
    """The same factors with the coefficients of least squares, which a penalty has made too small.

    A factor whose coefficient would be negative is dropped, and the others are fitted again.
    Cost: 2 d k^2 + k^3 FLOP for a code of k factors.
    """
    return _refit(dictionary, x, code > 0)


def _refit(dictionary: Tensor, x: Tensor, chosen: Bool[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    code = torch.zeros(chosen.shape, dtype=x.dtype, device=x.device)
    most = int(chosen.sum(1).max()) if len(chosen) else 0
    if not most:
        return code
    for rows in torch.arange(len(x), device=x.device).split(max(1, _ROOM // (most * dictionary.shape[1]))):
        code[rows] = _solved(dictionary, x[rows], chosen[rows], most)
    return code


def _solved(dictionary: Tensor, x: Tensor, chosen: Bool[Tensor, "row unit"], most: int) -> Float[Tensor, "row unit"]:
    """Least squares of each vector by its chosen factors, until none is negative."""
    place = chosen.to(torch.uint8).topk(most, dim=1).indices
    inside, few = chosen.gather(1, place), dictionary[place].double()
    gram, target = few @ few.mT, (few @ x.double()[:, :, None])[:, :, 0]
    fitted = torch.zeros_like(target)
    while True:
        both = inside[:, :, None] & inside[:, None, :]
        system = torch.where(both, gram, 0.0) + torch.diag_embed(torch.where(inside, 1e-12, 1.0))
        fitted = torch.where(inside, torch.linalg.solve(system, torch.where(inside, target, 0.0)), 0.0)
        if not bool((fitted < 0).any()):
            return torch.zeros(chosen.shape, dtype=x.dtype, device=x.device).scatter_(1, place, fitted.to(x.dtype))
        inside = inside & (fitted >= 0)


def _require_alike(dictionary: Tensor, x: Tensor) -> None:
    if x.shape[1] != dictionary.shape[1]:
        why = f"they have {x.shape[1]} numbers each, and factors {dictionary.shape[1]}"
        raise Refusal("vectors to be coded", why=why, instead="give states of the width that the dictionary was learnt on")
    if not bool(torch.isfinite(x).all()):
        raise Refusal("vectors to be coded", why="some are not finite", instead="leave such rows out")
