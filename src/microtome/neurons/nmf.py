"""Factors of activations: groups of units that are active together, and at which tokens, by non-negative matrix factorisation.

Rows are tokens, columns are units (A = W H): W says where a factor is active, H which units it is made of. Whether a factor means anything
is not said by its error, which falls for noise as well; beside it stand the same activations, each unit's shuffled over the tokens.

Axes of this module: `factor`; `column`, the ends of units: first h > 0 of all, then, where both ends are kept, h < 0 of all; `repeat`, a start
from other random numbers.

Source: Alammar 2021, Ecco (no arXiv entry), section on factor analysis.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, Half, Refusal, Role, Site, UnitAddress
from microtome.model import Model
from microtome.neurons.basis import Neurons
from microtome.neurons.rows import TokenRows, token_rows
from microtome.neurons.statistics import write_norms
from microtome.numerics import hash_parts

__all__ = [
    "ALAMMAR",
    "SHUFFLED",
    "ErrorCurve",
    "Factoring",
    "Factors",
    "Stability",
    "ends_of",
    "error_curve",
    "factored",
    "matched",
    "shuffled",
    "stability",
    "written_rows",
]

SHUFFLED: Final = "each unit's activations shuffled over the tokens"


@dataclass(frozen=True)
class Factoring:
    """How factors are made.

    `ends`: "both" splits a unit into max(h, 0) and max(-h, 0), which loses nothing, and nothing changes where a gated unit is reversed against
    what it writes; "positive" keeps the first. `start`: "nndsvda", from the singular vectors, which needs no luck, or "random".
    """

    factors: int = 10
    ends: Literal["both", "positive"] = "both"
    start: Literal["nndsvda", "random"] = "nndsvda"
    rounds: int = 500
    tolerance: float = 1e-4
    seed: int = 0


ALAMMAR: Final = Factoring(ends="positive", start="random")
"""As Ecco does it, with activations as they are, not as they write."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A = `tokens` `units`, rows of `units` of length 1, the factor that is largest over all tokens first; ||A - W H|| / ||A||.

    `settled` is false where the rounds were used up.
    """

    tokens: Float[Tensor, "row factor"]
    units: Float[Tensor, "factor column"]
    error: float
    settled: bool
    settings: Factoring

    def top_units(self, factor: int, layers: Sequence[int], k: int = 10) -> list[tuple[UnitAddress, str, float]]:
        """The k ends of units that a factor has most of, with their weights. `layers` are those whose units are side by side."""
        units = self.units.shape[1] // (2 if self.settings.ends == "both" else 1)
        width = units // len(layers)
        weight, column = self.units[factor].sort(descending=True, stable=True)
        found = []
        for at, size in zip(column[:k].tolist(), weight[:k].tolist(), strict=True):
            unit = at % units
            found.append((UnitAddress("neurons", unit % width, layer=layers[unit // width]), "+-"[at // units], size))
        return found

    def top_tokens(self, factor: int, k: int = 10) -> Int[Tensor, " k"]:
        """The rows where a factor is largest, of equal ones the first."""
        return self.tokens[:, factor].sort(descending=True, stable=True).indices[:k]


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Relative errors for each number of factors: of the tokens that they were fitted to, and of held-out ones (NaN where there are none).

    `control` and `held_control` are the same of shuffled activations (`SHUFFLED`): where they are as low, units have nothing in common.
    """

    ks: tuple[int, ...]
    error: Float64[Tensor, " k"]
    control: Float64[Tensor, " k"]
    held: Float64[Tensor, " k"]
    held_control: Float64[Tensor, " k"]


@dataclass(frozen=True, eq=False)
class Stability:
    """How much of each factor comes back from other starts: the cosine with its match among the factors of each, and of the shuffled's own.

    Factors that do not come back are not to be read. Those that do may still be nothing but units of large activations, which shuffled
    activations have as well; whether units have something in common is said by the errors of held-out tokens (`ErrorCurve`).
    """

    cosine: Float64[Tensor, "repeat factor"]
    control: Float64[Tensor, "repeat factor"]

    @property
    def means(self) -> tuple[float, float]:
        """Over repeats and factors, and of the control."""
        return float(self.cosine.mean()), float(self.control.mean())


def written_rows(
    model: Model, batches: Iterable[Batch], layers: Sequence[int], *, roles: frozenset[Role] = CONTENT
) -> TokenRows:
    """Activations of the units of some layers as they write, h_i |v_i|, which layers and rescaled units have in common.

    Errors: as of `rows.token_rows`.
    """
    found = token_rows(model, batches, [Site("mlp_act", layer) for layer in layers], roles=roles)
    norms = {layer: write_norms(model.weights, Neurons(layer, model.shape.d_mlp)).float().cpu() for layer in layers}
    return replace(found, values={site: value * norms[site.layer or 0] for site, value in found.values.items()})


def ends_of(h: Float[Tensor, "row unit"], ends: Literal["both", "positive"]) -> Float[Tensor, "row column"]:
    """[max(h, 0), max(-h, 0)], or the first."""
    return torch.cat([h.clamp(min=0), (-h).clamp(min=0)], 1) if ends == "both" else h.clamp(min=0)


def shuffled(h: Float[Tensor, "row unit"], seed: int) -> Float[Tensor, "row unit"]:
    """Each unit's activations in an order of its own."""
    order = hash_parts(seed, torch.arange(len(h))[:, None], torch.arange(h.shape[1])).argsort(0)
    return h.gather(0, order)


def factored(h: Float[Tensor, "row unit"], settings: Factoring = Factoring()) -> Factors:
    """Factors of a matrix of tokens by units; fewer than were asked for where there are fewer tokens.

    Errors: `Refusal` where no unit is active, and for an activation that is not finite.
    Cost: 8 rows columns factors FLOP a round; copies of both ends of all activations.
    """
    return _fitted(h, settings)[1]


def _fitted(h: Float[Tensor, "row unit"], settings: Factoring) -> tuple[Any, Factors]:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    rows = ends_of(h.double(), settings.ends).numpy()
    whole = float(np.linalg.norm(rows))
    if not 0 < whole < np.inf:
        why = "one is not finite" if whole != 0 else "none of them is active"
        raise Refusal("factors of activations", why=why, instead="give rows of tokens at which units are active")
    model = NMF(
        min(settings.factors, *rows.shape),
        init=settings.start,
        max_iter=settings.rounds,
        tol=settings.tolerance,
        random_state=settings.seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        w = torch.from_numpy(model.fit_transform(rows))
    parts = torch.from_numpy(model.components_)
    error = float(np.linalg.norm(rows - (w @ parts).numpy())) / whole
    length = parts.norm(dim=1)
    w, parts = w * length, parts / length.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    order = w.norm(dim=0).argsort(descending=True, stable=True)
    return model, Factors(w[:, order].float(), parts[order].float(), error, model.n_iter_ < settings.rounds, settings)


def error_curve(
    found: Float[Tensor, "row unit"],
    half: Int[Tensor, " row"],
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50),
    settings: Factoring = Factoring(),
) -> ErrorCurve:
    """Fit factors to the discover half, and read the confirm half with them (W >= 0 for given H), for each number of factors.

    Where all tokens are of one half it is fitted, and nothing is held out.
    Cost: two factorisations for each number.
    """
    fit, held = found[half == int(Half.DISCOVER)], found[half == int(Half.CONFIRM)]
    if not len(fit):
        fit, held = held, fit
    numbers = []
    for k in ks:
        pair = []
        for own, other in ((fit, held), (shuffled(fit, settings.seed), shuffled(held, settings.seed))):
            model, factors = _fitted(own, replace(settings, factors=k))
            pair += [factors.error, _held_error(model, other, settings)]
        numbers.append(pair)
    error, left, control, beside = torch.tensor(numbers, dtype=torch.float64).T
    return ErrorCurve(tuple(ks), error, control, left, beside)


def _held_error(model: Any, h: Float[Tensor, "row unit"], settings: Factoring) -> float:
    from sklearn.exceptions import ConvergenceWarning

    rows = ends_of(h.double(), settings.ends).numpy()
    whole = float(np.linalg.norm(rows))
    if not whole > 0:
        return torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = model.transform(rows)
    return float(np.linalg.norm(rows - found @ model.components_)) / whole


def stability(h: Float[Tensor, "row unit"], settings: Factoring = Factoring(), *, repeats: int = 5) -> Stability:
    """Compare the factors with those from random starts.

    Cost: 2 (1 + repeats) factorisations.
    """
    own: list[Tensor] = []
    control: list[Tensor] = []
    for rows, cosines in ((h, own), (shuffled(h, settings.seed), control)):
        first = factored(rows, settings).units
        for repeat in range(1, repeats + 1):
            other = factored(rows, replace(settings, start="random", seed=settings.seed + repeat)).units
            cosines.append(matched(first, other)[1])
    return Stability(torch.stack(own), torch.stack(control))


def matched(
    one: Float[Tensor, "factor column"], other: Float[Tensor, "factor column"]
) -> tuple[Int[Tensor, " factor"], Float64[Tensor, " factor"]]:
    """For each factor of `one` its own of `other`, so that the sum of their cosines is largest, and the cosines; 0 for a factor of zeros."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = (torch.nn.functional.normalize(each.double(), dim=1) for each in (one, other))
    cosine = rows @ columns.T
    match = torch.from_numpy(linear_sum_assignment(cosine.numpy(), maximize=True)[1])
    return match, cosine.gather(1, match[:, None])[:, 0]
