"""Two-way analysis of variance of vectors: what the window and the position inside it explain, by exact least squares.

The model is h_ct = mu + pos_t + ctx_c + resid_ct with c a window and t the place among its counted tokens. Windows may have
different lengths, so the two factors are not orthogonal in general; the sums of squares are sequential (type I): ctx first,
unadjusted, then pos given ctx, so that a position is never credited with the windows that happen to have it.
With equal lengths this is the balanced analysis, and order does not matter. Any tokens of a window may be left out: all that the
analysis needs then is a matrix of positions (`Equations`), which windows that end early have in closed form (`Moments`). The axis
`length` counts the distinct lengths of windows, ascending.

Running over a model belongs in `decomposition`, intervals in `jackknife`; sentences and tables belong in `lens`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["PARTS", "Equations", "Fit", "Kept", "Moments", "fit", "split"]

PARTS = ("pos", "ctx", "resid")
"""The parts whose shares of the variance add up to 1; mu is no part of the variance."""


@dataclass(frozen=True, eq=False)
class Moments:
    """All that the analysis needs of the data: additive over windows, float64.

    `windows[i]` counts windows of `lengths[i]` tokens. `sums[t]` adds up h_ct over windows, `means[i]` the means of the windows of
    that length. `squares[i]` adds up ||h_ct||^2 and `mean_squares[i]` the length times the squared length of the mean. Vectors
    are taken from a fixed origin near the mean.
    """

    lengths: Int[Tensor, " length"]
    windows: Int[Tensor, " length"]
    sums: Float[Tensor, "token d_model"]
    means: Float[Tensor, "length d_model"]
    squares: Float[Tensor, " length"]
    mean_squares: Float[Tensor, " length"]

    def minus(self, other: "Moments") -> "Moments":
        """The moments without those of `other`, which is a part of the same data with the same lengths."""
        return Moments(
            self.lengths,
            self.windows - other.windows,
            self.sums - other.sums,
            self.means - other.means,
            self.squares - other.squares,
            self.mean_squares - other.mean_squares,
        )

    def equations(self) -> "Equations":
        """The normal equations, from the histogram of lengths; positions that no window has are left out."""
        there = self.windows > 0
        lengths, per_length, means = self.lengths[there], self.windows[there].double(), self.means[there]
        longest = int(lengths.max())
        within = (self.squares - self.mean_squares)[there] / (lengths - 1).clamp(min=1)
        return Equations(
            windows=int(self.windows.sum()),
            counts=_from_longer(per_length, lengths, longest).round().long(),
            normal=_laplacian(per_length, lengths),
            scatter=_laplacian(within * (lengths > 1), lengths),
            linked=torch.zeros(longest, dtype=torch.int64),
            sums=self.sums[:longest],
            mean_sums=_from_longer(means, lengths, longest),
            squares=float(self.squares.sum()),
            mean_squares=float(self.mean_squares.sum()),
        )


@dataclass(frozen=True, eq=False)
class Kept:
    """What the analysis needs of windows of which any tokens are left out, window by window, float64.

    `kept` says which positions of a window count: a token's position is its place before any were left out. `means` and `squares`
    are the mean of a window's kept tokens and the sum of ||h_ct||^2 over them, `sums[t]` adds up the kept h_ct. Vectors are taken
    from a fixed origin near the mean.
    """

    kept: Bool[Tensor, "window token"]
    means: Float[Tensor, "window d_model"]
    squares: Float[Tensor, " window"]
    sums: Float[Tensor, "token d_model"]

    def equations(self) -> "Equations":
        """The normal equations. Cost: window token^2 and window token d_model."""
        there = self.kept.any(1)
        kept, means = self.kept[there].double(), self.means[there]
        lengths = kept.sum(1)
        mean_squares = lengths * means.square().sum(1)
        within = (self.squares[there] - mean_squares) / (lengths - 1).clamp(min=1)
        normal = _laplacian_of(kept, torch.ones_like(lengths))
        return Equations(
            windows=len(kept),
            counts=kept.sum(0).round().long(),
            normal=normal,
            scatter=_laplacian_of(kept, within * (lengths > 1)),
            linked=_linked(normal),
            sums=self.sums,
            mean_sums=kept.T @ means,
            squares=float(self.squares[there].sum()),
            mean_squares=float(mean_squares.sum()),
        )


@dataclass(frozen=True, eq=False)
class Equations:
    """The analysis with windows eliminated: normal @ pos = sums - mean_sums, and the sums of squares. Additive but for `linked`.

    With a_c the indicator of the positions that window c has, L_c how many, q_c its sum of squares about its mean:

        normal = sum_c (diag(a_c) - a_c a_c' / L_c) = diag(n) - W            mean_sums = sum_c a_c m_c' = U
        scatter = sum_c q_c / (L_c - 1) (diag(a_c) - a_c a_c' / L_c)

    `linked` numbers the sets of positions that windows link with each other, one unless windows have nothing in common.
    """

    windows: int
    counts: Int[Tensor, " token"]
    normal: Float[Tensor, "token token"]
    scatter: Float[Tensor, "token token"]
    linked: Int[Tensor, " token"]
    sums: Float[Tensor, "token d_model"]
    mean_sums: Float[Tensor, "token d_model"]
    squares: float
    mean_squares: float

    def inverse(self) -> Float[Tensor, "token token"]:
        """Inverse of `normal` with its null directions, a constant for each linked set, lifted to the scale of the rest.

        Rows of positions that no window has are 0.
        """
        there = self.counts.nonzero()[:, 0]
        same = self.linked[there][:, None] == self.linked[there]
        lifted = self.normal[there[:, None], there] + same * (float(self.counts.sum()) / len(there) ** 2)
        found = torch.zeros_like(self.normal)
        found[there[:, None], there] = torch.cholesky_inverse(torch.linalg.cholesky(lifted))
        return found


@dataclass(frozen=True, eq=False)
class Fit:
    """A solution. `mu` is relative to the origin of the data; `pos` sums to 0 over tokens, and is 0 where `counts` is.

    `share` is the part's sequential sum of squares over the total about mu, `control` what it would be by chance (see `fit`),
    `norm` the root mean square length of the part over tokens.
    """

    mu: Float[Tensor, " d_model"]
    pos: Float[Tensor, "token d_model"]
    counts: Int[Tensor, " token"]
    windows: int
    tokens: int
    total: float
    share: dict[str, float]
    control: dict[str, float]
    norm: dict[str, float]


def fit(data: Moments | Kept) -> Fit:
    """Solve the two-way model and split the variance, each share beside its expectation under no effect.

    The paper has windows of one length; with ragged ones, or tokens left out, this is ordinary least squares.

        normal P = S - U             SS_ctx = sum_c L_c ||m_c - mu||^2            SS_pos = <P, S - U>

    Controls, exact and without draws: pos with the kept tokens of every window in random order among their positions,

        E SS_pos = tr(normal^+ scatter)

    which with equal lengths is (SS_pos + SS_resid) / windows, and the same as under independent circular shifts of the windows,
    which keep the autocorrelation of tokens (with ragged ones the two differ little: a test simulates both); ctx under a random
    assignment of all tokens to windows, (windows - 1) / (tokens - 1); resid under a random assignment to windows and positions.
    They take windows for independent: of a text that is there k times over, chance is k times larger than this. What the two halves
    agree on, its interval and its p-value are not misled, for copies of a document share a half (`jackknife`).
    Needs at least one token and finite moments. Cost: O(token^3 + token^2 d_model).
    Source: Song & Zhong 2023, arXiv:2310.04861, section 2.
    """
    given = data.equations()
    inverse, effect = given.inverse(), given.sums - given.mean_sums
    return _split(given, inverse @ effect, effect, null=float((inverse * given.scatter).sum()))


def split(given: Equations, pos: Float[Tensor, "token d_model"]) -> Fit:
    """Split the variance by a position part that is given, up to constants: with that of least squares, this is `fit`.

        SS_pos = 2 <P, S - U> - <P, normal P>

    is what subtracting P from every window takes off the sum of squares inside windows. Least squares take off the most, and a P
    that is far from it takes off less than nothing: that share is 0. What SS_pos is without an effect is not known.
    """
    return _split(given, pos, given.normal @ pos, null=math.nan)


def _split(given: Equations, pos: Float[Tensor, "token d_model"], applied: Float[Tensor, "token d_model"], null: float) -> Fit:
    """The variance by a position part, `applied` being normal @ pos, and `null` what SS_pos is without an effect."""
    counts, tokens = given.counts.double(), int(given.counts.sum())
    pos = _balanced(given, pos)
    mu = given.sums.sum(0) / tokens
    spent = float((pos * applied).sum())
    gain = 2 * float((pos * (given.sums - given.mean_sums)).sum()) - spent

    about_mu = tokens * float(mu.dot(mu))
    total = given.squares - about_mu
    squares = {"pos": gain, "ctx": given.mean_squares - about_mu}
    squares["resid"] = total - squares["pos"] - squares["ctx"]
    varies = total > 1e-9 * given.squares
    share = {part: min(max(squares[part], 0.0) / total, 1.0) if varies else 0.0 for part in PARTS}

    sizes = {"pos": float((counts * pos.square().sum(1)).sum()), "resid": squares["resid"]}
    sizes["ctx"] = squares["ctx"] - 2 * float((pos * given.mean_sums).sum()) + sizes["pos"] - spent

    rest, sets = max(tokens - 1, 1), len(given.linked[given.counts > 0].unique())
    control = {"pos": null / total if varies else 0.0, "ctx": (given.windows - 1) / rest}
    control["resid"] = 1 - (given.windows - 1 + int((counts > 0).sum()) - sets) / rest
    norm = {part: max(sizes[part] / tokens, 0.0) ** 0.5 for part in PARTS}
    return Fit(mu, pos, given.counts, given.windows, tokens, total, share, control, norm)


def _balanced(given: Equations, pos: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """The same up to constants, which no window tells from its own, so that it sums to 0 over the tokens of each linked set."""
    counts = given.counts.double()
    belongs = torch.nn.functional.one_hot(given.linked).double()
    means = (belongs.T * counts) @ pos / (belongs.T @ counts).clamp(min=1)[:, None]
    return (pos - belongs @ means) * (counts > 0)[:, None]


def _linked(normal: Float[Tensor, "token token"]) -> Int[Tensor, " token"]:
    """The number of the linked set that each position is in: positions of one window, of windows that share one, and so on."""
    from scipy.sparse.csgraph import connected_components

    return torch.from_numpy(connected_components((normal != 0).numpy(), directed=False)[1]).long()


def _laplacian(per_length: Float[Tensor, " length"], lengths: Int[Tensor, " length"]) -> Float[Tensor, "token token"]:
    """sum_c w_c (diag(a_c) - a_c a_c' / L_c) for windows that have their first L_c positions, w summed up by length."""
    positions = int(lengths.max())
    shared = _from_longer(per_length / lengths, lengths, positions)
    place = torch.arange(positions, device=lengths.device)
    return torch.diag(_from_longer(per_length, lengths, positions)) - shared[torch.maximum(place[:, None], place)]


def _laplacian_of(kept: Float[Tensor, "window token"], weight: Float[Tensor, " window"]) -> Float[Tensor, "token token"]:
    """sum_c w_c (diag(a_c) - a_c a_c' / L_c) for windows with any positions, at least one each."""
    return torch.diag(kept.T @ weight) - (kept.T * (weight / kept.sum(1))) @ kept


def _from_longer(per_length: Tensor, lengths: Int[Tensor, " length"], longest: int) -> Tensor:
    """At t: the sum over lengths L > t."""
    sums = per_length.flip(0).cumsum(0).flip(0)
    return sums[torch.searchsorted(lengths, torch.arange(longest, device=lengths.device), right=True)]
