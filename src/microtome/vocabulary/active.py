"""Which parameters each token activates most, folded over a text: units by their coefficients, heads by coordinates of z.

A coefficient is what a vector that is added to the stream is multiplied by, or what a vector that reads it answers. What these parameters
say, and whether it is what the token's state says, belongs in `activated`. The axis `most` counts the parameters a token activates most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Role, Site, State, token_keys
from microtome.model import Model
from microtome.numerics import hash_parts, uniform
from microtome.readout.sample import Target, target_ids
from microtome.vocabulary.parameters import block_of, group_named, layers_of

__all__ = ["GROUPS_AT", "Active", "ActiveUnits", "Ranking", "active_units", "unsigned"]

Ranking = Literal["largest", "dominant"]
"""What a token activates most: the largest coefficients, as in the paper; or those whose sub-update is longest, |m_i| |v_i|, of either
sign: then a negative one counts with the tokens at the other end of its vector. In gated blocks half of the coefficients are negative."""
GROUPS_AT: Final[Mapping[str, tuple[str, ...]]] = {
    "mlp_pre": ("W_in", "W_gate"),
    "mlp_pre_linear": ("W_up",),
    "mlp_act": ("W_out",),
    "z": ("W_V", "W_O"),
}
"""At which site the coefficients of a group are."""


@dataclass(frozen=True, eq=False)
class Active:
    """What each sampled token activates most at a site, first what it activates most; tokens in the order of (window, place).

    A unit whose coefficient counts as negative is ~unit. In a mixture of experts unit u of expert e is e * d_mlp + u.
    """

    site: Site
    ranking: Ranking
    window: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    document: Int[Tensor, " row"]
    half: Int[Tensor, " row"]
    units: Int[Tensor, "row most"]
    coefficients: Float[Tensor, "row most"]


@dataclass(frozen=True, eq=False)
class ActiveUnits:
    """The `most` coordinates of a site that each token of a `readout.TokenSample` of this target, rate and seed activates most.

    With `lengths`, those of the vectors that the coordinates multiply, ranking is by |coefficient| times length and signs are kept;
    without, by the coefficient. Coefficients of experts have the router's weight in them, what they read has not.
    Cost: sorting the coordinates of the sampled tokens; a state of as many rows.
    """

    kind: ClassVar[str] = "vocabulary.active_units"
    version: ClassVar[int] = 1

    site: Site
    width: int
    most: int
    target: Target
    rate: float
    seed: int
    lengths: Float[Tensor, " unit"] | None = None
    roles: frozenset[Role] = CONTENT

    @property
    def sites(self) -> tuple[Site, ...]:
        """The one site."""
        return (self.site,)

    def init(self) -> State:
        """No row."""
        places = {name: torch.zeros(0, dtype=torch.int64) for name in ("window", "token", "document", "half")}
        units = torch.zeros(0, min(self.most, self.width), dtype=torch.int64)
        return {**places, "units": units, "coefficients": torch.zeros(units.shape)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Append what the batch's sampled tokens activate."""
        _, counted = target_ids(batch, self.target, self.roles)
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        hashes = hash_parts(self.seed, batch.window[:, None], place[None, :])
        window, token = (counted & (uniform(hashes) < self.rate)).nonzero(as_tuple=True)
        if not len(window):
            return
        x, most = values[self.site], min(self.most, self.width)
        if isinstance(x, Tensor):
            wide = x.flatten(2)[window.to(x.device), token.to(x.device)].float()
            units, coefficients = _leading(wide, self.lengths, most)
        else:
            units, coefficients = self._of_experts(x, window * x.tokens + token, most)
        places = {
            "window": batch.window[window],
            "token": token,
            "document": batch.document[window],
            "half": batch.half[window],
        }
        for name, tensor in {**places, "units": units, "coefficients": coefficients}.items():
            state[name] = torch.cat([state[name], tensor.cpu().to(state[name].dtype)])

    def merge(self, state: State, later: State) -> State:
        """Rows of both."""
        return {name: torch.cat([state[name], later[name]]) for name in state}

    def result(self, state: State) -> Active:
        """The rows in the order of the corpus."""
        order = token_keys(state["window"], state["token"]).argsort()
        ranking: Ranking = "largest" if self.lengths is None else "dominant"
        return Active(self.site, ranking, **{name: tensor[order] for name, tensor in state.items()})

    def _of_experts(
        self, x: ExpertRows, sampled: Int[Tensor, " row"], most: int
    ) -> tuple[Int[Tensor, "row most"], Float[Tensor, "row most"]]:
        """The leading units of each token over all experts that it went to."""
        owner_of = torch.full((x.windows * x.tokens,), -1, device=x.token.device)
        owner_of[sampled.to(owner_of.device)] = torch.arange(len(sampled), device=owner_of.device)
        mine = (owner_of[x.token] >= 0).nonzero()[:, 0]
        mine = mine[(owner_of[x.token[mine]] * (int(x.expert.max()) + 1) + x.expert[mine]).argsort()]
        owner, expert = owner_of[x.token[mine]], x.expert[mine]
        weight = x.weight[mine, None].float() if self.site.name == "mlp_act" else 1.0
        wide, width = x.values[mine].float() * weight, x.values.shape[1]
        lengths = None if self.lengths is None else self.lengths.to(wide).view(-1, width)[expert]
        units, coefficients = _leading(wide, lengths, most)
        reach = coefficients if lengths is None else coefficients.abs() * lengths.gather(1, unsigned(units))
        units = torch.where(units < 0, ~(~units + expert[:, None] * width), units + expert[:, None] * width)
        counts = owner.bincount(minlength=len(sampled))
        slot = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        shape = (len(sampled), int(counts.max()), most)
        joined = [reach.new_full(shape, -torch.inf), units.new_zeros(shape), coefficients.new_zeros(shape)]
        for into, part in zip(joined, (reach, units, coefficients), strict=True):
            into[owner, slot] = part
        keys, ids, signed = (each.flatten(1) for each in joined)
        order = keys.sort(dim=1, descending=True, stable=True).indices[:, :most]
        return ids.gather(1, order), signed.gather(1, order)


def active_units(
    model: Model, target: Target, rate: float, seed: int, *, most: int = 5, ranking: Ranking = "largest"
) -> dict[Site, ActiveUnits]:
    """The folds of a model by site: of what feed-forward units read, their coefficients, and the coordinates of heads.

    "dominant" is that of `mlp_act` alone: only what is added to the stream has a length. Cost of the latter: one read of W_out.
    Source: Dar et al. 2022, arXiv:2209.02535, section 4.2; Geva et al. 2022, arXiv:2203.14680, section 4, for "dominant".
    """
    folds = {}
    for layer in range(model.shape.layers):
        for name, groups in GROUPS_AT.items():
            there = [group for group in map(group_named, groups) if layer in layers_of(model.weights, group)]
            if not there or (ranking == "dominant" and name != "mlp_act"):
                continue
            width = model.shape.heads * model.shape.d_head if name == "z" else model.shape.d_mlp
            lengths = None
            if ranking == "dominant":
                lengths = block_of(model.weights, there[0], layer).rows.norm(dim=1)
            folds[Site(name, layer)] = ActiveUnits(Site(name, layer), width, most, target, rate, seed, lengths)
    return folds


def _leading(
    wide: Float[Tensor, "row unit"], lengths: Float[Tensor, "..."] | None, most: int
) -> tuple[Int[Tensor, "row most"], Float[Tensor, "row most"]]:
    """Units and coefficients that rank first, ties to the lower unit."""
    keys = wide if lengths is None else wide.abs() * lengths.to(wide)
    order = keys.sort(dim=1, descending=True, stable=True).indices[:, :most]
    coefficients = wide.gather(1, order)
    return (order if lengths is None else torch.where(coefficients < 0, ~order, order)), coefficients


def unsigned(units: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Units without signs."""
    return torch.where(units < 0, ~units, units)
