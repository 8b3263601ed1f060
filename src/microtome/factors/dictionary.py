"""A dictionary as a value: its directions, what states are scaled by before they are coded, how they are coded, and what it is for.

It can be used on the model and at the sites that it was learnt on, and says so where it is not. It is kept in one file. How it is learnt, and
what its factors mean, belongs elsewhere; formats of others are read in `formats`. Additional axes: `place` counts the sites that are read, and
`target` those that are written: as many as places in a crosscoder, and else 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.coding import Greedy, Lasso, Prepared, coded, greedily
from microtome.factors.scaling import Scaling
from microtome.store import fingerprint

__all__ = ["Above", "Arrangement", "Coder", "Dictionary", "Encoder", "Largest"]

Arrangement = Literal["shared", "crosscoder", "transcoder"]
"""shared: the same directions at every place, each of which has a code of its own; crosscoder: one code for all places, each of which has
directions of its own; transcoder: states of one site are coded, and what is made of the codes is another."""

_AT_ONCE: Final = 4096
"""States that are coded together, where codes are searched for."""


@dataclass(frozen=True, eq=False)
class Above:
    """Of what an encoder makes, what is above a unit's threshold (not below 0) is its code, and all else 0."""

    threshold: Float[Tensor, " unit"]

    def keep(self, z: Float[Tensor, "*row unit"]) -> Float[Tensor, "*row unit"]:
        """Codes."""
        return torch.where(z > self.threshold.to(z.dtype), z, 0)


@dataclass(frozen=True)
class Largest:
    """The k largest are the code, if they are above 0, and all else 0."""

    k: int

    def keep(self, z: Float[Tensor, "*row unit"]) -> Float[Tensor, "*row unit"]:
        """Codes."""
        if self.k >= z.shape[-1]:
            return z.clamp(min=0)
        values, index = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter_(-1, index, values.clamp(min=0))


@dataclass(frozen=True, eq=False)
class Encoder:
    """Codes in one product: of the scaled states x of all places, what `rule` keeps of sum_p x_p W_p + b."""

    weights: Float[Tensor, "place d_model unit"]
    bias: Float[Tensor, " unit"]
    rule: Above | Largest

    def codes(self, scaled: Mapping[int, Float[Tensor, "*row d_model"]]) -> Float[Tensor, "*row unit"]:
        """Codes of scaled states, by place."""
        parts = [x @ self.weights[place].to(x.dtype) for place, x in scaled.items()]
        return self.rule.keep(sum(parts[1:], parts[0]) + self.bias.to(parts[0].dtype))


Coder = Lasso | Greedy | Encoder


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Directions of which states are made, and how much of each is in a state.

    A state x at a place is coded as a >= 0 so that a Phi + b is near (x - centre) / size. `directions` have length 1 where the dictionary
    was learnt here. `model` is the fingerprint of the model whose states it is for (empty where nobody knows), `learnt` how it came about.
    `skip`, of a transcoder, is a linear part that needs no code.
    Errors: `Refusal` where shapes or sites do not fit together, and where numbers are not finite.
    """

    name: str
    arrangement: Arrangement
    reads: tuple[Site, ...]
    writes: tuple[Site, ...]
    coder: Coder
    scaling: Scaling
    directions: Float[Tensor, "target unit d_model"]
    offset: Float[Tensor, "target d_model"]
    target_scaling: Scaling | None = None
    skip: Float[Tensor, "d_model d_model"] | None = None
    model: str = ""
    learnt: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        targets = len(self.reads) if self.arrangement == "crosscoder" else 1
        fits = {
            "as many directions": len(self.directions) == len(self.offset) == targets,
            "a scaling of every place": len(self.scaling.size) == len(self.reads),
            "the places that it writes": self.arrangement == "transcoder" or self.writes == self.reads,
            "one place to read and one to write": self.arrangement != "transcoder" or len(self.reads) == len(self.writes) == 1,
            "an encoder, having no states of one place to code": self.arrangement == "shared"
            or isinstance(self.coder, Encoder),
            "an encoder of its own width": not isinstance(self.coder, Encoder)
            or self.coder.weights.shape[::2] == (targets, self.units),
        }
        if lacking := [what for what, there in fits.items() if not there]:
            raise Refusal(f"dictionary {self.name}", why=f"it does not have {lacking[0]}", instead="make it of parts that fit")
        if not all(bool(torch.isfinite(each).all()) for each in (self.directions, self.offset)):
            raise Refusal(f"dictionary {self.name}", why="some numbers are not finite", instead="train it anew")

    @property
    def units(self) -> int:
        """How many factors there are."""
        return self.directions.shape[1]

    @property
    def width(self) -> int:
        """Numbers in a state that it reads."""
        return self.scaling.centre.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides about codes, and what they make."""
        parts = (self.arrangement, self.reads, self.writes, self.coder, self.scaling, self.directions, self.offset)
        return fingerprint((self.name, self.model, *parts, self.target_scaling, self.skip))

    @cached_property
    def _prepared(self) -> dict[torch.dtype, Prepared]:
        return {}

    @cached_property
    def _elsewhere(self) -> "dict[torch.device, Dictionary]":
        return {}

    def __getstate__(self) -> dict[str, object]:
        """What it is, without what was prepared for a device: another process may have others."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def on(self, device: torch.device) -> "Dictionary":
        """The same with its numbers on a device. Cost: a copy, made and kept the first time."""
        if self.directions.device == device:
            return self
        if device not in self._elsewhere:
            coder = self.coder
            if isinstance(coder, Encoder):
                rule = Above(coder.rule.threshold.to(device)) if isinstance(coder.rule, Above) else coder.rule
                coder = Encoder(coder.weights.to(device), coder.bias.to(device), rule)
            self._elsewhere[device] = replace(
                self,
                coder=coder,
                scaling=self.scaling.on(device),
                directions=self.directions.to(device),
                offset=self.offset.to(device),
                target_scaling=None if self.target_scaling is None else self.target_scaling.on(device),
                skip=None if self.skip is None else self.skip.to(device),
            )
        return self._elsewhere[device]

    def place(self, site: Site) -> int:
        """The number of a site among those that are read.

        Errors: `Refusal` for one that it was not learnt on.
        """
        if site not in self.reads:
            why = f"it was learnt at {', '.join(map(str, self.reads))}"
            raise Refusal(f"dictionary {self.name} at {site}", why=why, instead="name one of these sites")
        return self.reads.index(site)

    def scaled(self, values: Mapping[Site, Float[Tensor, "*row d_model"]]) -> dict[Site, Float[Tensor, "*row d_model"]]:
        """States as they are coded.

        Errors: `Refusal` for states of another width, or of a site that it was not learnt on.
        """
        for site, x in values.items():
            if x.shape[-1] != self.width:
                why = f"they have {x.shape[-1]} numbers each, and it was learnt on states of {self.width}"
                raise Refusal(f"states at {site}", why=why, instead="use the model that the dictionary is of")
        return {site: self.scaling.apply(x, self.place(site)) for site, x in values.items()}

    def encode(self, values: Mapping[Site, Float[Tensor, "*row d_model"]]) -> Float[Tensor, "*row unit"]:
        """Codes of states as the model has them: of one site, or in a crosscoder of all that it reads; computed where the (first) state is.

        Errors: `Refusal` for states of another width, or of other sites.
        Cost: for each state 2 d_model units FLOP by an encoder; for the others see `coding`.
        """
        wanted = self.reads if self.arrangement == "crosscoder" else tuple(values)[:1]
        if not values or set(values) != set(wanted):
            why = f"states are given of {', '.join(map(str, values)) or 'no site'}"
            instead = f"give those of {', '.join(map(str, self.reads))}" + (", one at a time" if len(wanted) == 1 else "")
            raise Refusal(f"codes of dictionary {self.name}", why=why, instead=instead)
        device = values[wanted[0]].device
        here = self.on(device)
        scaled = here.scaled({site: values[site].to(device) for site in wanted})
        if isinstance(here.coder, Encoder):
            crossed = self.arrangement == "crosscoder"
            return here.coder.codes({self.place(site) if crossed else 0: x for site, x in scaled.items()})
        (x,) = scaled.values()
        flat = x.reshape(-1, x.shape[-1])
        found = [here._searched(rows) for rows in flat.split(_AT_ONCE)] or [flat.new_zeros(0, self.units)]
        return torch.cat(found).view(*x.shape[:-1], self.units)

    def _searched(self, rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row unit"]:
        x = rows - self.offset[0].to(rows.dtype)
        phi = self._prepared.setdefault(rows.dtype, Prepared(self.directions[0].to(rows.dtype)))
        if isinstance(self.coder, Greedy):
            return greedily(phi, x, self.coder)
        assert isinstance(self.coder, Lasso), "an encoder is no search"
        return coded(phi, x, self.coder).values

    def decode(
        self, codes: Float[Tensor, "*row unit"], site: Site, state: Float[Tensor, "*row d_model"] | None = None
    ) -> Float[Tensor, "*row d_written"]:
        """What codes make of a state at one of the sites that are written, in the model's own units, where the codes are.

        `state` is that which was read: a transcoder with a linear part needs it.
        """
        if self.directions.device != codes.device:
            return self.on(codes.device).decode(codes, site, state)
        target, place, scaling = 0, 0, self.scaling
        if self.arrangement == "crosscoder":
            target = place = self.place(site)
        elif self.arrangement == "shared":
            place = self.place(site)
        elif self.target_scaling is not None:
            scaling = self.target_scaling
        made = codes @ self.directions[target].to(codes.dtype) + self.offset[target].to(codes.dtype)
        if self.skip is not None:
            assert state is not None, "a linear part is of the state that was read"
            made = made + self.scaling.apply(state, 0) @ self.skip.to(codes.dtype)
        return scaling.undo(made, place)

    def require_for(self, model: str, what: str) -> None:
        """Refuse a model that is not the one whose states the dictionary was learnt on; `what` is that model's name.

        Errors: `Refusal`.
        """
        if self.model and self.model != model:
            why = "it was learnt on states of another model, or of the same with other weights"
            raise Refusal(f"dictionary {self.name} on {what}", why=why, instead="train one on this model")

    def coded_by(self, coder: Coder) -> "Dictionary":
        """The same directions with another way to code: exact codes of an autoencoder's directions, say."""
        return replace(self, coder=coder)
