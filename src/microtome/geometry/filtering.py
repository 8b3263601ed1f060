"""Is the smooth part of position what a model uses? Position is filtered inside the running model, and its answers are compared.

At a site, h' = h - pos + Phi_K Phi_K' pos keeps the K lowest frequencies of position, of which 0 are its mean over the window; with K = 0
position is removed. The control takes away as much in other directions. How smooth position is, without running anything, belongs in
`smoothness`; how a tensor is changed in a running model, in `intervene`. The axis `variant` counts changes of one site: the filtered
position, then the controls; `number` counts what is measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Half, Refusal, Role, Site, State
from microtome.geometry.decomposition import Parts
from microtome.geometry.measured import Measured, undefined
from microtome.geometry.rows import Stat
from microtome.geometry.smoothness import cosines
from microtome.intervene import Add, Edit, edited, final_states, predictions, state_change
from microtome.model import Model
from microtome.numerics import hash_parts
from microtome.readout.sample import target_ids

__all__ = ["CONTROL", "KEEP", "WINDOWS", "FilterEffect", "PositionFilter", "filter_stats", "filtered", "spaced"]

KEEP: Final = (0, 5, 20)
"""Numbers of lowest frequencies that are kept."""
WINDOWS: Final = 8
"""Windows that are enough for an interval: each takes dozens of passes."""
CONTROL: Final = "a random change as large"

_SITES: Final = 6
_DRAWS: Final = 2
_SALT: Final = 0xF117
_CLEAN: Final = "clean"
"""The loss of the model as it is, the same for every variant."""


@dataclass(frozen=True, eq=False)
class FilterEffect:
    """What it does to a model that position keeps its `keep` lowest frequencies at a site, of `tokens` that it has.

    `change` is by name: `loss_change`, nats a token that the loss of the next token rises, and `kl`, the divergence of its predictions
    from those of the clean run; for a model without a causal head `state_change`, 1 - cosine of final states with those of the clean run.
    A value is the mean over `windows`, its interval and p-value of t tests over these, p of the difference from the control. The control
    is the mean over `draws` random changes as large. `removed` is the share of position's sum of squares that is taken away, `clean` the
    loss of the model as it is (NaN where there is none).
    """

    site: Site
    keep: int
    tokens: int
    removed: float
    change: Mapping[str, Measured]
    clean: float
    windows: int
    draws: int


@dataclass(frozen=True, eq=False)
class _Window:
    """A window alone: where its counted tokens are, which tokens predict one, and its clean final states."""

    batch: Batch
    half: int
    places: Int[Tensor, " row"]
    predicting: Bool[Tensor, " token"]
    targets: Int[Tensor, " token"]
    clean: Float[Tensor, "token d_model"]


def filtered(pos: Float[Tensor, "token d_model"], keep: int) -> Float[Tensor, "token d_model"]:
    """Phi_K Phi_K' pos: position vectors made of their `keep` lowest cosines over the window (DCT-II); all of them if that is all there are.

    >>> filtered(torch.tensor([[0.0], [2.0]]), 1)
    tensor([[1.],
            [1.]])
    """
    if keep < 0:
        raise Refusal(
            f"position with {keep} frequencies", why="a number of frequencies is at least 0", instead="ask for 0 or more"
        )
    if keep >= len(pos):
        return pos
    phi = cosines(len(pos), keep).to(pos.device)
    return (phi @ (phi.T @ pos.double())).to(pos.dtype)


@dataclass(frozen=True, eq=False)
class PositionFilter:
    """Position filtered at the sites of `parts`, one site and one number of frequencies at a time, and what changes: `FilterEffect`s.

    Changed are the counted tokens that have a row of `pos`; special and first tokens stay. A window's position part is that of the
    documents in the other half, where `parts` have halves: its own tokens are then no part of what is taken away. The control turns the
    change pos - Phi_K Phi_K' pos at random in d_model: each token's is as long as before, and position looks as smooth. What it cannot match
    is how the space is filled: a space with few busy directions may be more or less sensitive to others.

    Over tokens that have a following counted token: the change of its loss; over all changed ones for a model without a causal head.
    The fold needs no tensor of the pass that it is part of: it makes passes of its own.
    Cost: one clean pass per window, then sites x keep x (1 + draws) passes, 2 FLOP per parameter and token each: at 6 sites, 3 numbers
    and 2 draws 55 passes. Memory: final states of a batch, one site's changes, the activations of 1 + draws windows.
    Errors: `Refusal` where a site cannot be edited. Undefined, with the reason: where nothing would be taken away, or no token has a position.
    """

    kind: ClassVar[str] = "geometry.filter"
    version: ClassVar[int] = 1

    model: Model
    parts: tuple[Parts, ...]
    keep: tuple[int, ...] = KEEP
    draws: int = _DRAWS
    seed: int = 0
    roles: frozenset[Role] = CONTENT

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise Refusal(f"a control of {self.draws} draws", why="there is nothing to compare with", instead="draw at least 1")

    @property
    def sites(self) -> tuple[Site, ...]:
        """None: the changed model is run apart."""
        return ()

    def init(self) -> State:
        """No window."""
        shape = (0, len(self.parts) * len(self.keep), len(_measured(self.model)), 1 + self.draws)
        return {"values": torch.zeros(shape, dtype=torch.float64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Run the batch's windows with every filter; NaN where one changes nothing that counts."""
        windows = _windows(self.model, batch, self.roles)
        if windows:
            found = [
                self._outcomes(parts, keep, place, windows) for place, parts in enumerate(self.parts) for keep in self.keep
            ]
            state["values"] = torch.cat([state["values"], torch.stack(found, 1)])

    def merge(self, state: State, later: State) -> State:
        """Windows follow each other."""
        return {"values": torch.cat([state["values"], later["values"]])}

    def result(self, state: State) -> list[FilterEffect]:
        """An effect for each site and number, in this order."""
        filters = [(parts, keep) for parts in self.parts for keep in self.keep]
        return [self._effect(*each, table) for each, table in zip(filters, state["values"].unbind(1), strict=True)]

    def _outcomes(
        self, parts: Parts, keep: int, place: int, windows: Sequence[_Window]
    ) -> Float[Tensor, "window number variant"]:
        """What one filter at one site changes in each window."""
        nothing = torch.full((len(_measured(self.model)), 1 + self.draws), math.nan, dtype=torch.float64)
        estimates, seed = _estimates(parts), int(hash_parts(self.seed, _SALT, place, keep))
        if parts.undefined or _nothing_to_remove(estimates, keep):
            return nothing.repeat(len(windows), 1, 1)
        changes = {
            half: _variants(estimates[Half(half)], keep, self.draws, seed) for half in sorted({each.half for each in windows})
        }
        found = (_outcome(self.model, parts.site, each, changes[each.half]) for each in windows)
        return torch.stack([nothing if each is None else each for each in found])

    def _effect(self, parts: Parts, keep: int, table: Float[Tensor, "window number variant"]) -> FilterEffect:
        """The effect of one filter at one site."""
        names = [name for name in _measured(self.model) if name != _CLEAN]
        energy, left = (float(part.double().square().sum()) for part in (parts.pos, parts.pos - filtered(parts.pos, keep)))
        effect = FilterEffect(
            parts.site, keep, len(parts.pos), left / energy if energy else math.nan, {}, math.nan, len(table), self.draws
        )
        if why := parts.undefined or _nothing_to_remove(_estimates(parts), keep):
            return replace(effect, removed=0.0, change=dict.fromkeys(names, undefined(why)))
        table = table[~table[:, 0].isnan().all(1)]
        if not len(table):
            return replace(effect, windows=0, change=dict.fromkeys(names, undefined("no window has a token with a position")))
        numbers = dict(zip(_measured(self.model), table.unbind(1), strict=True))
        change = {name: _against_control(numbers[name][:, 0], numbers[name][:, 1:].mean(1)) for name in names}
        clean = float(numbers[_CLEAN][:, 0].mean()) if _CLEAN in numbers else math.nan
        return replace(effect, change=change, clean=clean, windows=len(table))


def spaced(sites: Sequence[Site], most: int = _SITES) -> list[Site]:
    """Up to so many of the sites, evenly spaced: enough to see where position is used."""
    chosen = torch.linspace(0, len(sites) - 1, min(len(sites), most)).round().long()
    return [sites[place] for place in chosen.tolist()]


def filter_stats(effects: Sequence[FilterEffect]) -> list[Stat]:
    """The numbers of `effects` as rows of `geometry_stats`: loss_change_keep_5, kl_keep_5 or state_change_keep_5 of the subject pos."""
    return [
        Stat(each.site, "pos", f"{name}_keep_{each.keep}", found, CONTROL)
        for each in effects
        for name, found in each.change.items()
    ]


def _predicts(model: Model) -> bool:
    return model.head is not None and model.head.kind == "causal"


def _measured(model: Model) -> tuple[str, ...]:
    """Names of the numbers of a window."""
    return ("loss_change", "kl", _CLEAN) if _predicts(model) else ("state_change",)


def _windows(model: Model, batch: Batch, roles: frozenset[Role]) -> list[_Window]:
    """The windows of a batch one by one, each after a clean pass; without those that count no token."""
    targets, predicting = target_ids(batch, "next", roles)
    counted, found = batch.counted(roles), []
    for row in range(len(batch.ids)):
        if bool(counted[row].any()):
            alone = batch.take(torch.tensor([row]))
            places, clean = counted[row].nonzero()[:, 0], final_states(model, alone)[0]
            found.append(_Window(alone, int(batch.half[row]), places, predicting[row], targets[row], clean))
    return found


def _estimates(parts: Parts) -> dict[int, Float[Tensor, "token d_model"]]:
    """The position part that is used for windows of each half: that of the other half, if there are two."""
    if parts.halves is None:
        return dict.fromkeys(Half, parts.pos)
    discover, confirm = parts.halves
    return {Half.DISCOVER: confirm.pos, Half.CONFIRM: discover.pos}


def _nothing_to_remove(estimates: Mapping[int, Float[Tensor, "token d_model"]], keep: int) -> str:
    """Why a filter would change nothing; empty where it does change something."""
    tokens = max(len(pos) for pos in estimates.values())
    if keep >= tokens:
        return f"position has only {tokens} frequencies, and all are kept"
    if not any(bool((pos != 0).any()) for pos in estimates.values()):
        return "all positions have the same mean"
    return ""


def _variants(pos: Float[Tensor, "token d_model"], keep: int, draws: int, seed: int) -> Float[Tensor, "variant token d_model"]:
    """What is added to position: minus what the filter takes away, then the same turned at random in d_model, `draws` times.

    Only the directions that the change spans are turned: R = C V' becomes C W' with random orthonormal W.
    """
    pos = pos.double().cpu()
    change = filtered(pos, keep) - pos
    directions, coordinates = torch.linalg.qr(change.T)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(draws, *directions.shape, generator=generator, dtype=torch.float64)
    turned = coordinates.T @ torch.linalg.qr(drawn)[0].mT
    return torch.cat([change[None], turned]).float()


def _outcome(
    model: Model, site: Site, window: _Window, changes: Float[Tensor, "variant token d_model"]
) -> Float[Tensor, "number variant"] | None:
    """Means over a window's tokens of what each variant changes, as `_measured` names them; None where no token counts."""
    places = window.places[: changes.shape[1]]
    predicts = _predicts(model)
    measured = places[window.predicting[places]] if predicts else places
    if not len(measured):
        return None
    batch = window.batch.take(torch.zeros(len(changes), dtype=torch.int64))
    values = changes.new_zeros(len(changes), batch.roles.shape[1], changes.shape[2])
    values[:, places.cpu()] = changes[:, : len(places)]
    with edited(model, batch, [Edit(site, Add(values))]):
        states = final_states(model, batch)[:, measured]
    if not predicts:
        return state_change(window.clean[measured], states).mean(1, keepdim=True).T.double().cpu()
    found = predictions(model, window.clean[measured], states, window.targets[measured])
    clean = found.clean.mean().expand(len(changes))
    return torch.stack([(found.loss - found.clean).mean(1), found.kl.mean(1), clean]).double().cpu()


def _against_control(own: Float[Tensor, " window"], control: Float[Tensor, " window"]) -> Measured:
    """The mean with its t interval over windows, and the p-value of a paired t test against the control; neither for one window."""
    from scipy.stats import t

    value, beside, count = float(own.mean()), float(control.mean()), len(own)
    if not math.isfinite(value):
        return undefined("the changed model makes NaN or infinite numbers")
    if count < 2:
        return Measured(value, control=beside)
    reach = float(t.ppf(0.975, count - 1)) * float(own.std()) / count**0.5
    gap = own - control
    error = float(gap.std()) / count**0.5
    p = 2 * float(t.sf(abs(float(gap.mean())) / error, count - 1)) if error > 0 else math.nan
    return Measured(value, lo=value - reach, hi=value + reach, control=beside, p=p)
