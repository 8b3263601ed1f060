"""Two-way analysis of variance of vectors: what the window and the position inside it explain, by exact least squares.

The model is h_ct = mu + pos_t + ctx_c + resid_ct with c a window and t the place among its counted tokens. Windows may have
different lengths, so the two factors are not orthogonal in general; the sums of squares are sequential (type I): ctx first,
unadjusted, then pos given ctx, so that a position is never credited with the windows that happen to be long enough to have it.
With equal lengths this is the balanced analysis, and order does not matter. The axis `length` counts the distinct lengths of
windows, ascending.

Running over a model belongs in `decomposition`, intervals in `jackknife`; sentences and tables belong in `lens`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["PARTS", "Fit", "Moments", "fit", "position_null"]

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


@dataclass(frozen=True, eq=False)
class Fit:
    """The least-squares solution. `mu` is relative to the origin of the moments; `pos` sums to 0 over tokens.

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


def fit(moments: Moments) -> Fit:
    """Solve the two-way model and split the variance, each share beside its expectation under no effect.

    The paper has windows of one length; with ragged ones this is ordinary least squares.

        n_t = windows longer than t          U_t = sum over them of their means          W_tt' = sum_{L > max(t,t')} windows[L] / L
        (diag(n) - W) P = S - U              SS_ctx = sum_c L_c ||m_c - mu||^2            SS_pos = <P, S - U>

    Controls, exact and without draws: pos by `position_null`, tokens reordered inside their windows; ctx under a random
    assignment of all tokens to windows, (windows - 1) / (tokens - 1); resid under a random assignment to windows and positions.
    Needs at least one token and finite moments; positions that no window has are left out. Cost: O(token^3 + token^2 d_model).
    Source: Song & Zhong 2023, arXiv:2310.04861, section 2.
    """
    there = moments.windows > 0
    lengths, per_length = moments.lengths[there], moments.windows[there].double()
    longest = int(lengths.max())
    sums, means = moments.sums[:longest], moments.means[there]
    counts = _from_longer(per_length, lengths, longest).round().long()
    windows, tokens = int(moments.windows.sum()), int(counts.sum())
    mean_sums = _from_longer(means, lengths, longest)
    inverse = _inverse(per_length, lengths, counts.double())
    effect = sums - mean_sums
    pos = inverse @ effect
    pos = pos - (counts.double() @ pos) / tokens
    mu = sums.sum(0) / tokens

    about_mu = tokens * mu.dot(mu)
    total = float(moments.squares.sum() - about_mu)
    squares = {"pos": float((pos * effect).sum()), "ctx": float(moments.mean_squares.sum() - about_mu)}
    squares["resid"] = total - squares["pos"] - squares["ctx"]
    slack = 1e-6 * float(moments.squares.sum())
    varies = total > slack * 1e-3
    share = {part: max(squares[part], 0.0) / total if varies else 0.0 for part in PARTS}

    fitted = mu + pos.cumsum(0)[lengths - 1] / lengths.double()[:, None]
    cross = about_mu + (pos * mean_sums).sum()
    ctx_square = moments.mean_squares.sum() - 2 * cross + (per_length * lengths * fitted.square().sum(1)).sum()
    sizes = {"pos": (counts.double() * pos.square().sum(1)).sum(), "ctx": ctx_square, "resid": squares["resid"]}

    null = position_null(lengths, (moments.squares - moments.mean_squares)[there], inverse)
    rest = max(tokens - 1, 1)
    control = {"pos": null / total if varies else 0.0, "ctx": (windows - 1) / rest}
    control["resid"] = 1 - (windows - 1 + len(counts) - 1) / rest
    norm = {part: max(float(sizes[part]) / tokens, 0.0) ** 0.5 for part in PARTS}
    return Fit(mu, pos, counts, windows, tokens, total, share, control, norm)


def position_null(
    lengths: Int[Tensor, " length"], within: Float[Tensor, " length"], inverse: Float[Tensor, "token token"]
) -> float:
    """Expected SS_pos when the tokens of every window are put in random order, window by window.

    With K the inverse of the normal matrix and q_L = `within` the sum of squares inside windows of length L,

        E = sum_L q_L / L [ sum_{t<L} K_tt - (1 / (L - 1)) sum_{t != t' < L} K_tt' ]

    With equal lengths this is (SS_pos + SS_resid) / windows, and the same as under independent circular shifts of the
    windows, which keep the autocorrelation of tokens. With ragged windows the two differ only as far as K off its diagonal
    departs from f(t) + f(t'), which is little: a test simulates both.
    """
    several = lengths > 1
    at, length, within = lengths[several] - 1, lengths[several].double(), within[several]
    diagonal = inverse.diagonal().cumsum(0)[at]
    everything = inverse.cumsum(0).cumsum(1).diagonal()[at]
    return float((within / length * (diagonal - (everything - diagonal) / (length - 1))).sum())


def _from_longer(per_length: Tensor, lengths: Int[Tensor, " length"], longest: int) -> Tensor:
    """At t: the sum over lengths L > t."""
    sums = per_length.flip(0).cumsum(0).flip(0)
    return sums[torch.searchsorted(lengths, torch.arange(longest, device=lengths.device), right=True)]


def _inverse(
    windows: Float[Tensor, " length"], lengths: Int[Tensor, " length"], counts: Float[Tensor, " token"]
) -> Float[Tensor, "token token"]:
    """Inverse of diag(n) - W with its one null direction, the constant, lifted to the scale of the rest."""
    positions = len(counts)
    shared = _from_longer(windows / lengths, lengths, positions)
    place = torch.arange(positions, device=windows.device)
    normal = torch.diag(counts) - shared[torch.maximum(place[:, None], place[None, :])]
    return torch.linalg.inv(normal + counts.sum() / positions**2)
