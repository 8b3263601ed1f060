"""Positional units: units whose being active depends on where in the window a token is.

A unit is active in two senses, the axis `criterion` of this module: its gate is open (`mlp_pre` > 0: a > 0 in a plain block, g > 0 in a
gated one), and its activation is large, |h| > tau of the unit. `position` counts places in a window, `level` are shares.
What a unit reads is not asked here: text has a beginning of its own, and a unit of titles is positional in documents that have one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import f as ratio_law
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State
from microtome.examples.entries import to_device
from microtome.numerics import benjamini_hochberg, window_shifts

__all__ = [
    "CRITERIA",
    "VOITA",
    "Activity",
    "Positional",
    "PositionalActivity",
    "mutual_information",
    "positional",
    "profile_kind",
    "shift_p",
]

CRITERIA: Final = ("open", "large")
VOITA: Final = 0.05
"""Information in nats above which the paper calls a unit positional."""
_ERRORS: Final = 3.0
"""Standard errors that a profile must be away from its middle before it counts as having gone there."""
_ROWS: Final = 4096


@dataclass(frozen=True, eq=False)
class Activity:
    """How often each unit is active at each place; `shifted` are the counts with every window's places turned round at random."""

    seen: Int64[Tensor, " position"]
    active: Int64[Tensor, "criterion position unit"]
    shifted: Int64[Tensor, "draw criterion position unit"]

    @property
    def share(self) -> Float64[Tensor, "criterion position unit"]:
        """f_i(t), NaN at places that no token was at."""
        return self.active.double() / torch.where(self.seen > 0, self.seen.double(), torch.nan)[:, None]


@dataclass(frozen=True)
class PositionalActivity:
    """Counts of active tokens by place, for every unit of a block, and the same counts of `draws` circular shifts.

    A shift moves a window's tokens round among its own counted places (`numerics.window_shifts`): how often the window has a
    unit active, and in what runs, stays; where, does not. `tau` is each unit's own threshold for |h|, since sizes of different
    units do not compare: its root mean square, say. `positions` is the length of the longest window; `width` tokens of it that follow each
    other count as one position.
    Cost: 4 (1 + draws) positions FLOP a unit and token. Memory: 16 (1 + draws) bytes a position and unit.
    Source: Voita et al. 2023, arXiv:2309.04827, section 5.
    """

    kind: ClassVar[str] = "neurons.positional"
    version: ClassVar[int] = 2

    layer: int
    tau: Float[Tensor, " unit"]
    positions: int
    draws: int = 4
    width: int = 1
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """What enters the nonlinearity, and what enters the down projection."""
        return Site("mlp_pre", self.layer), Site("mlp_act", self.layer)

    def init(self) -> State:
        """No token seen."""
        places = -(-self.positions // self.width)
        counts = (len(CRITERIA), places, len(self.tau))
        return {
            "seen": torch.zeros(places, dtype=torch.int64),
            "active": torch.zeros(counts, dtype=torch.int64),
            "shifted": torch.zeros((self.draws, *counts), dtype=torch.int64),
        }

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Count the batch's active tokens where they are, and where each draw has them.

        Errors: `Refusal` for a mixture of experts, and for a window longer than `positions`.
        """
        gate, act = (values[site] for site in self.sites)
        if isinstance(gate, ExpertRows) or isinstance(act, ExpertRows):
            why = "a token reaches some experts only, so what is counted is the router's choice"
            raise Refusal(
                f"positional units of layer {self.layer}", why=why, instead="use a model with dense feed-forward blocks"
            )
        to_device(state, gate.device)
        row, place = batch.counted(self.roles).to(gate.device).nonzero(as_tuple=True)
        if not len(row):
            return
        if int(place.max()) >= self.positions:
            why = f"the fold counts {self.positions}"
            raise Refusal(f"a token at place {int(place.max())}", why=why, instead="make the fold for the longest window")
        counted = place // self.width
        state["seen"].index_add_(0, counted, torch.ones_like(counted))
        orders = window_shifts(batch.window.to(row.device)[row], self.draws, self.seed)
        turned = torch.stack([counted, *(counted[order] for order in orders)])
        places = torch.arange(len(state["seen"]), device=gate.device)
        tau = self.tau.to(act)
        for rows in torch.arange(len(row), device=gate.device).split(_ROWS):
            at = row[rows], place[rows]
            # a product of zeros and ones counts faster than additions by index, and exactly: no count of a block reaches 2^24
            there = (turned[:, None, rows] == places[:, None]).float()
            for criterion, active in enumerate((gate[at] > 0, act[at].abs() > tau)):
                sums = (there.flatten(0, 1) @ active.float()).to(torch.int64).view(*there.shape[:2], -1)
                state["active"][criterion] += sums[0]
                state["shifted"][:, criterion] += sums[1:]

    def merge(self, state: State, later: State) -> State:
        """Sums."""
        return {name: counts + later[name].to(counts.device) for name, counts in state.items()}

    def result(self, state: State) -> Activity:
        """The counts, on the host."""
        return Activity(**{name: counts.cpu() for name, counts in state.items()})


@dataclass(frozen=True, eq=False)
class Positional:
    """What place says of a unit's being active, in nats, by criterion.

    `information` is corrected for finite counts, `control` is the mean of the shifted draws, corrected alike; `p` and `q` are against them.
    NaN for a unit that is never, or always, active: its information is 0 and was not tested. `kind` is the profile's shape (`profile_kind`).
    """

    information: Float64[Tensor, "criterion unit"]
    control: Float64[Tensor, "criterion unit"]
    p: Float64[Tensor, "criterion unit"]
    q: Float64[Tensor, "criterion unit"]
    kind: tuple[tuple[str, ...], ...]

    def found(self, least: float = VOITA, largest_q: float = 0.01) -> list[Int64[Tensor, " unit"]]:
        """Positional units by criterion, most informative first."""
        size = torch.where((self.q <= largest_q) & (self.information > least), self.information, -torch.inf)
        order = size.sort(dim=1, descending=True, stable=True)
        return [index[value > -torch.inf] for value, index in zip(order.values, order.indices, strict=True)]


def positional(activity: Activity) -> Positional:
    """Mutual information of place and being active, against windows whose places were turned round.

    MI less (T - 1) / (2 N), its expectation for N independent tokens at T places if place says nothing. Tokens of a document are not
    independent, which that correction does not know and the draws do (`shift_p`); q is Benjamini-Hochberg over the units of a
    criterion.
    Errors: `Refusal` for fewer than two places or three draws.
    """
    used = activity.seen > 0
    places, tokens = int(used.sum()), int(activity.seen.sum())
    if places < 2 or len(activity.shifted) < 3:
        why = f"{places} places and {len(activity.shifted)} draws leave nothing to compare"
        raise Refusal("positional units", why=why, instead="give windows of two tokens or more, and three draws or more")
    bias = (places - 1) / (2 * tokens)
    total = activity.active.sum(1)
    tested = (total > 0) & (total < tokens)
    found = mutual_information(activity.active, activity.seen)
    drawn = mutual_information(activity.shifted, activity.seen)
    p, q = torch.full_like(found, torch.nan), torch.full_like(found, torch.nan)
    for criterion, units in enumerate(tested):
        if bool(units.any()):
            p[criterion, units] = shift_p(found[criterion, units], drawn[:, criterion, units])
            q[criterion] = benjamini_hochberg(p[criterion])
    kinds = tuple(
        tuple(profile_kind(activity.active[criterion][used], activity.seen[used])) for criterion in range(len(CRITERIA))
    )
    nothing = torch.where(tested, 0.0, torch.nan)
    return Positional(found - bias + nothing, drawn.mean(0) - bias + nothing, p, q, kinds)


def shift_p(found: Float64[Tensor, " unit"], drawn: Float64[Tensor, "draw unit"]) -> Float64[Tensor, " unit"]:
    """P-values of information against each unit's shifted draws: the tail of F(v, draws v) at information / mean of the draws.

    Information of tokens without a place is nearly c chi-square(v); v is 2 mean^2 / variance of the unit's draws, or the median of the
    block's units where that is less, since few draws say little of their own width and a small v is the careful side. 1 where the
    draws have none: a unit that a window has or has not, everywhere. Not: exact; tails far out lean on the chi-square form.
    """
    draws, mean = len(drawn), drawn.mean(0)
    freedom = 2 * mean.square() / drawn.var(0).clamp_min(1e-300)
    varied = mean > 1e-15
    usual = freedom[varied].median() if bool(varied.any()) else torch.tensor(1.0, dtype=torch.float64)
    freedom = torch.minimum(freedom, usual).clamp_min(1)
    tail = torch.from_numpy(ratio_law.sf((found / mean.clamp_min(1e-300)).numpy(), freedom.numpy(), (draws * freedom).numpy()))
    return torch.where(varied, tail, 1.0)


def mutual_information(
    active: Int64[Tensor, "*any position unit"], seen: Int64[Tensor, " position"]
) -> Float64[Tensor, "*any unit"]:
    """Sum over t of (n_t / N) KL(f(t) || f), in nats: that of the counts themselves, which is too large in finite samples.

    The paper's mean over places, where every place has as many tokens; else places weigh what they were seen.
    Source: Voita et al. 2023, arXiv:2309.04827, section 5.
    """
    tokens = seen.sum()
    share = active.double() / seen.clamp_min(1)[:, None]
    mean = (active.sum(-2).double() / tokens)[..., None, :]
    each = torch.special.xlogy(share, share / mean.clamp_min(1e-300))
    each = each + torch.special.xlogy(1 - share, (1 - share) / (1 - mean).clamp_min(1e-300))
    return (each * (seen.double() / tokens)[:, None]).sum(-2)


def profile_kind(active: Int64[Tensor, "position unit"], seen: Int64[Tensor, " position"]) -> list[str]:
    """The shape of each unit's shares over places: `range`, `both ways`, `oscillating`, or empty where it never leaves its middle.

    A profile is high or low once it is beyond its middle by a quarter of its range and by three standard errors, and stays so until it is
    the other. `range`: high in one run of places. `both ways`: low in one run with high ones on either side. `oscillating`: more runs.
    The paper names these types and gives no rule; this one is ours. Not: a test, and not for units that are not positional.
    """
    share = active.double() / seen.clamp_min(1)[:, None]
    high, low = share.max(0).values, share.min(0).values
    middle, quarter = (high + low) / 2, (high - low) / 4
    error = _ERRORS * (middle * (1 - middle) / seen.clamp_min(1)[:, None]).sqrt()
    level = torch.maximum(quarter.expand_as(error), error)
    states = torch.where(share >= middle + level, 1, torch.where(share <= middle - level, -1, 0))
    kinds = []
    for unit in states.T.tolist():
        runs = [state for state in unit if state]
        runs = [state for place, state in enumerate(runs) if not place or runs[place - 1] != state]
        ups = runs.count(1)
        if len(runs) < 2:
            kinds.append("")
        elif ups == 1:
            kinds.append("range")
        else:
            kinds.append("both ways" if len(runs) == 3 else "oscillating")
    return kinds
