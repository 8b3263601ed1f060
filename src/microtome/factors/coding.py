"""Exact sparse codes: of which few factors, and of how much of each, a vector is made.

A dictionary has factors as rows; a code a >= 0 of a vector x makes a Phi of it, and what is left over is small. Here the rows are given
and codes are sought: by the lasso, which is convex and solved until its duality gap says that it is, or greedily for a number of factors. How
dictionaries are learnt, scaled and stored belongs elsewhere; what an encoder guesses in one product is no code in this sense, but a start for one.

Source: Yun et al. 2021, arXiv:2103.15949, section 2.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Refusal
from microtome.factors.active_set import gap_of, searched
from microtome.numerics import solve_positive
from microtome.numerics.kernels import compiled_lasso_for, spread

__all__ = [
    "Coded",
    "Greedy",
    "Lasso",
    "Prepared",
    "Solver",
    "coded",
    "duality_gap",
    "greedily",
    "refitted",
    "steepness",
]

Solver = Literal["auto", "fista", "active-set"]
"""fista: steps along the gradient, for any number of factors; active-set: solves over the few factors of a code, by the products of all factors with
each other, which must fit into memory; auto: the fastest that was measured, which is active-set up to 16,384 factors."""

_LOOK: Final = 10
"""Steps between two looks at the gap, which costs as much as a step."""
_SLACK: Final = 1 + 1e-6
"""By how much the largest eigenvalue is rounded up, so that no step is too long."""
_ROOM: Final = 1 << 24
"""Numbers of the factors that are gathered at a time for refits."""
_PRODUCTS: Final = 1 << 14
"""Factors up to which all their products are held: 1 GB in float32."""
_FINE: Final = 1e-5
"""Below this tolerance products rounded to float32 do not tell whether it is reached: the search is in float64."""
_ROWS: Final = 16
"""Vectors that one thread works on at least."""


@dataclass(frozen=True)
class Lasso:
    """|x - a Phi|^2 / 2 + penalty sum(a) is smallest over a >= 0, up to `tolerance` of |x|^2 / 2; `steps` is where the search ends at the latest.

    All solvers have the same codes, up to the tolerance; a step of an active set is a round of solves, of which a few are enough. The penalty is in units of x and does not grow with it: what is to mean the same at all layers is scaled before.
    Errors: `Refusal` for a penalty or tolerance that is not above 0, and for no step.
    """

    penalty: float
    tolerance: float = 1e-4
    steps: int = 1000
    solver: Solver = "auto"

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.tolerance > 0 and self.steps > 0):
            why = "penalty, tolerance and steps are not all above 0"
            raise Refusal(f"{self}", why=why, instead="give positive numbers")


@dataclass(frozen=True)
class Greedy:
    """At most `factors` for each vector, one after the other, the next where the rest points most.

    `matching` refits all coefficients after each (orthogonal matching pursuit, non-negative); `gradient` moves them along their gradient by the
    best step, which is cheaper and nearly as good; `pursuit` adds to the best factor what the rest has of it and leaves the others, so that a
    factor may come again and there may be fewer (matching pursuit, as in autoencoders of that name).
    Errors: `Refusal` for fewer than one.
    """

    factors: int
    fit: Literal["matching", "gradient", "pursuit"] = "matching"

    def __post_init__(self) -> None:
        if self.factors < 1:
            raise Refusal(f"codes of {self.factors} factors", why="there is nothing to code with", instead="name one or more")


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes; `gap` is the duality gap of each over |x|^2 / 2 (0 for a vector of zeros), `steps` how many were taken for the slowest."""

    values: Float[Tensor, "row unit"]
    gap: Float[Tensor, " row"]
    steps: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """A dictionary with what many batches need of it, made when it is first asked for. Takes the place of a dictionary wherever one is coded with."""

    dictionary: Float[Tensor, "unit d_model"]

    @cached_property
    def steep(self) -> float:
        """See `steepness`."""
        return steepness(self.dictionary)

    @cached_property
    def gram(self) -> Float[Tensor, "unit other"]:
        """The products of all factors with each other, in the dictionary's own type: units^2 numbers."""
        return self.dictionary @ self.dictionary.T

    @cached_property
    def wide(self) -> "Prepared":
        """The same in float64."""
        return self if self.dictionary.dtype == torch.float64 else Prepared(self.dictionary.double())


def steepness(dictionary: Float[Tensor, "unit d_model"]) -> float:
    """The largest eigenvalue of Phi' Phi, by which steps are divided: once for a dictionary, of the smaller of its two products."""
    wide = dictionary.double()
    gram = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    return float(torch.linalg.eigvalsh(gram)[-1]) * _SLACK


def coded(
    dictionary: Float[Tensor, "unit d_model"] | Prepared,
    x: Float[Tensor, "row d_given"],
    settings: Lasso,
    start: Float[Tensor, "row unit_given"] | None = None,
    *,
    steep: float | None = None,
) -> Coded:
    """The lasso's codes, each up to the tolerance or as near as the steps allow, with the gap that says which.

    `start` is a code to begin from (another layer's, an encoder's); `steep` the dictionary's `steepness`, if it is known: a `Prepared` dictionary
    knows it, and the products of its factors. Vectors whose active set ends above the tolerance are gone on with by steps along the gradient.
    Codes have the type of x; in float32 a gap is known to 1e-6, and rounding the codes leaves one of about 1e-7.
    Source: Beck and Teboulle 2009, doi:10.1137/080716542, equations 4.1 to 4.3.
    Source: O'Donoghue and Candes 2015, arXiv:1204.3982, on restarts.
    Source: Lawson and Hanson 1974, doi:10.1137/1.9781611971217, chapter 23, on active sets.
    Errors: `Refusal` for vectors or a start of another width, or that are not finite.
    Cost: 2 d factors FLOP for each vector, and with active sets 2 k factors for each round and k^2 for each factor that comes or goes, for a code
    of k factors (without compiled kernels k^3 / 3); otherwise for each step 4 d factors, or 2 factors^2 where that is less.
    """
    ready = dictionary if isinstance(dictionary, Prepared) else Prepared(dictionary)
    _require_alike(ready.dictionary, x)
    if start is not None:
        start = _begun(start, len(x), len(ready.dictionary), x.dtype)
    few = len(ready.dictionary) <= _PRODUCTS
    if settings.solver == "fista" or (settings.solver == "auto" and not few):
        return _by_steps(ready, x, settings, start, steep)
    found = _by_sets(ready, x, settings, start)
    least = max(settings.tolerance, 8 * torch.finfo(x.dtype).eps)
    open_ = (found.gap > least).nonzero()[:, 0]
    if not len(open_) or found.steps >= settings.steps:
        return found
    further = replace(settings, tolerance=least, steps=settings.steps - found.steps)
    rest = _by_steps(ready, x[open_], further, found.values[open_], steep)
    values, gaps = found.values.index_copy(0, open_, rest.values), found.gap.index_copy(0, open_, rest.gap)
    return Coded(values, gaps, found.steps + rest.steps)


def _by_sets(ready: Prepared, x: Tensor, settings: Lasso, start: Tensor | None) -> Coded:
    """By active sets: compiled where that is there."""
    if (settings.tolerance < _FINE and x.dtype != torch.float64) or x.dtype not in (torch.float32, torch.float64):
        wide, seen = ready.wide, x.double()
        found = _by_sets(wide, seen, settings, None if start is None else start.double())
        values, half = found.values.to(x.dtype), seen.square().sum(1) / 2
        gap = duality_gap(wide.dictionary, seen, values.double(), settings.penalty)  # of what rounding has left of them
        return Coded(values, torch.where(half > 0, gap / half, 0.0).to(x.dtype), found.steps)
    target, square = x @ ready.dictionary.T, x.double().square().sum(1)
    code = torch.zeros_like(target) if start is None else start.contiguous()
    kernels = compiled_lasso_for(x, ready.gram)
    if kernels is None:
        code, gap, steps = searched(
            ready.gram, target, square.to(x.dtype), code, settings.penalty, settings.tolerance, settings.steps
        )
        return Coded(code, gap, steps)
    gap, steps = torch.zeros_like(square), torch.zeros(len(x), dtype=torch.int64)
    asked = (float(settings.penalty), float(settings.tolerance), settings.steps, min(ready.dictionary.shape))
    given = ready.gram.detach().numpy(), target.detach().numpy(), square.detach().numpy()
    found = code.numpy(), gap.numpy(), steps.numpy()
    spread(len(x), _ROWS, lambda begin, end: kernels.lasso(*given, asked, (begin, end), found))
    return Coded(code, gap.to(x.dtype), int(steps.max()) if len(x) else 0)


def _by_steps(ready: Prepared, x: Tensor, settings: Lasso, start: Tensor | None, steep: float | None) -> Coded:
    """By accelerated proximal steps, restarted for each vector where momentum points uphill; vectors that are done are left out."""
    length = steep or ready.steep
    half = x.square().sum(1) / 2
    found = x.new_zeros(len(x), len(ready.dictionary)) if start is None else start.clone()
    gaps = torch.zeros_like(half)
    at = half.nonzero()[:, 0]
    found[half == 0] = 0
    part = _Part.of(ready, x[at], found[at])
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
    def of(ready: Prepared, x: Tensor, code: Tensor) -> "_Part":
        dictionary = ready.dictionary
        few = len(dictionary) < 2 * dictionary.shape[1]
        return _Part(dictionary, ready.gram if few else None, x, x @ dictionary.T, code, code)

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
    return gap_of(rest @ dictionary.T, rest.square().sum(1), code, penalty)


def greedily(
    dictionary: Float[Tensor, "unit d_model"] | Prepared, x: Float[Tensor, "row d_given"], settings: Greedy
) -> Float[Tensor, "row unit"]:
    """Codes of a few factors. A vector gets fewer where no further factor points along what is left of it, beyond rounding.

    Source: Bruckstein et al. 2008, doi:10.1109/TIT.2008.929920, on non-negative matching pursuit.
    Source: Blumensath and Davies 2008, doi:10.1109/TSP.2007.916124, on gradient pursuit.
    Source: Costa et al. 2025, arXiv:2506.03093, on plain matching pursuit as an encoder.
    Errors: `Refusal` for vectors of another width, or that are not finite, and for more factors than there are.
    Cost: 2 d factors FLOP for each vector, and for the n-th factor of a code 2 n factors and n^2 with compiled kernels (`pursuit`: 2 factors); else 4 d
    factors and with `matching` a refit.
    """
    ready = dictionary if isinstance(dictionary, Prepared) else Prepared(dictionary)
    dictionary = ready.dictionary
    _require_alike(dictionary, x)
    if settings.factors > len(dictionary):
        why = f"the dictionary has {len(dictionary)}"
        raise Refusal(f"codes of {settings.factors} factors", why=why, instead="name no more than it has")
    floor = 16 * torch.finfo(x.dtype).eps * x.norm(dim=1)
    kernels = None if len(dictionary) > _PRODUCTS else compiled_lasso_for(x, dictionary)
    if kernels is not None and settings.fit != "gradient":
        return _compiled_greedily(kernels, ready, x, floor, settings)
    return _pursued(ready, x, floor, settings.factors) if settings.fit == "pursuit" else _chosen(ready, x, floor, settings)


def _compiled_greedily(kernels: ModuleType, ready: Prepared, x: Tensor, floor: Tensor, settings: Greedy) -> Tensor:
    target = x @ ready.dictionary.T
    code = torch.zeros_like(target)
    kernel = kernels.matching if settings.fit == "matching" else kernels.pursuit
    given = ready.gram.detach().numpy(), target.detach().numpy(), floor.detach().numpy(), settings.factors
    spread(len(x), _ROWS, lambda begin, end: kernel(*given, (begin, end), code.numpy()))
    return code


def _pursued(ready: Prepared, x: Tensor, floor: Tensor, factors: int) -> Float[Tensor, "row unit"]:
    """Plain matching pursuit."""
    rest, code = x, x.new_zeros(len(x), len(ready.dictionary))
    length = ready.dictionary.square().sum(1)
    for _ in range(factors):
        best, factor = (rest @ ready.dictionary.T).max(1)
        share = torch.where(best > floor, best / length[factor], 0.0).to(x.dtype)
        if not bool((share > 0).any()):
            break
        code.scatter_add_(1, factor[:, None], share[:, None])
        rest = rest - share[:, None] * ready.dictionary[factor]
    return code


def _chosen(ready: Prepared, x: Tensor, floor: Tensor, settings: Greedy) -> Float[Tensor, "row unit"]:
    """Factors one after the other, each once, and all coefficients moved after each."""
    dictionary = ready.dictionary
    code = torch.zeros(len(x), len(dictionary), dtype=x.dtype, device=x.device)
    chosen = torch.zeros_like(code, dtype=torch.bool)
    for _ in range(settings.factors):
        rest = x - code @ dictionary
        pull = rest @ dictionary.T
        best, factor = pull.masked_fill(chosen, -torch.inf).max(1)
        some = (best > floor).nonzero()[:, 0]
        if not len(some):
            break
        chosen[some, factor[some]] = True
        if settings.fit == "matching":
            code[some] = _refit(ready, x[some], chosen[some])
            continue
        along = torch.where(chosen[some], pull[some], 0)
        made = along @ dictionary
        length = (made * rest[some]).sum(1) / made.square().sum(1).clamp(min=torch.finfo(x.dtype).tiny)
        code[some] = (code[some] + length[:, None] * along).clamp(min=0)
    return code


def refitted(
    dictionary: Float[Tensor, "unit d_model"] | Prepared, x: Float[Tensor, "row d_model"], code: Float[Tensor, "row unit"]
) -> Float[Tensor, "row unit"]:
    """The same factors with the coefficients of least squares, which a penalty has made too small.

    A factor whose coefficient would be negative is dropped, and the others are fitted again.
    Cost: 2 d units + k^3 FLOP for a code of k factors; once for a dictionary the products of all its factors with each other.
    """
    return _refit(dictionary if isinstance(dictionary, Prepared) else Prepared(dictionary), x, code > 0)


def _refit(ready: Prepared, x: Tensor, chosen: Bool[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """In float64, codes of about as many factors together."""
    code = torch.zeros(chosen.shape, dtype=x.dtype, device=x.device)
    count = chosen.sum(1)
    order = count.argsort(stable=True)
    left = order[count[order] > 0]
    while len(left):
        most = int(count[left[-1]])
        rows, left = left[-max(1, _ROOM // most**2) :], left[: -max(1, _ROOM // most**2)]
        target = x[rows].double() @ ready.wide.dictionary.T
        code[rows] = _solved(ready, target, chosen[rows], most).to(x.dtype)
    return code


def _solved(ready: Prepared, pull: Tensor, chosen: Bool[Tensor, "row unit"], most: int) -> Float[Tensor, "row unit"]:
    """Least squares of each vector by its chosen factors, until none is negative; `pull` is what all factors have of it."""
    place = chosen.to(torch.uint8).topk(most, dim=1).indices
    inside, target = chosen.gather(1, place), pull.gather(1, place)
    if len(ready.dictionary) <= _PRODUCTS:
        gram = ready.wide.gram[place[:, :, None], place[:, None, :]]
    else:
        few = ready.dictionary[place].double()
        gram = few @ few.mT
    fitted, open_ = torch.zeros_like(target), torch.arange(len(pull), device=pull.device)
    while len(open_):
        own = inside[open_]
        system = torch.where(own[:, :, None] & own[:, None, :], gram[open_], 0.0)
        system += torch.diag_embed((~own).to(system.dtype))
        found = torch.where(own, solve_positive(system, torch.where(own, target[open_], 0.0)), 0.0)
        fitted[open_], inside[open_] = found, own & (found >= 0)
        open_ = open_[(found < 0).any(1)]
    return torch.zeros_like(pull).scatter_(1, place, fitted)


def _require_alike(dictionary: Tensor, x: Tensor) -> None:
    if x.shape[1] != dictionary.shape[1]:
        why = f"they have {x.shape[1]} numbers each, and factors {dictionary.shape[1]}"
        raise Refusal("vectors to be coded", why=why, instead="give states of the width that the dictionary was learnt on")
    if not bool(torch.isfinite(x).all()):
        raise Refusal("vectors to be coded", why="some are not finite", instead="leave such rows out")


def _begun(start: Tensor, rows: int, factors: int, dtype: torch.dtype) -> Tensor:
    """A start as a code: of the same type, and nowhere below 0."""
    if start.shape != (rows, factors):
        why = f"it is of {tuple(start.shape)}, and codes of {(rows, factors)}"
        raise Refusal("start of a search for codes", why=why, instead="give a code for each vector, of all factors")
    if not bool(torch.isfinite(start).all()):
        raise Refusal("start of a search for codes", why="some of it is not finite", instead="begin without one")
    return start.detach().to(dtype).clamp(min=0)
