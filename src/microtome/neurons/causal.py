"""Which units a model's loss needs: who is ablated, and what first-order effects and ablations say, as rows and sentences.

How effects are had is said in `effects`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import scipy.stats
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.examples.findings import Finding
from microtome.examples.rows import address_column, word_column
from microtome.neurons.basis import Neurons
from microtome.neurons.effects import SHIFTED, Ablations, Effects
from microtome.numerics import benjamini_hochberg, hash_parts, uniform

__all__ = ["MATCHED", "Picked", "ablation_rows", "effect_findings", "effect_rows", "pick"]

MATCHED: Final = "a random unit of its layer that writes as much"
MOST: Final = 24
"""Units that are ablated for their first-order effect; as many are ablated beside them."""
_NEAREST: Final = 10
_LARGEST_Q: Final = 0.01
_COLUMNS: Final = ("value", "control", "lo", "hi", "q")


@dataclass(frozen=True, eq=False)
class Picked:
    """Units that are ablated: those of largest first-order effect in the discover half, and behind them a matched one for each."""

    layer: Int[Tensor, " unit"]
    index: Int[Tensor, " unit"]

    @property
    def chosen(self) -> int:
        """How many there are before the matched ones."""
        return len(self.layer) // 2


def pick(effects: Effects, written: Float[Tensor, "layer unit"], *, most: int = MOST, seed: int = 0) -> Picked:
    """The `most` units of largest absolute effect in the discover half, and for each a unit of its layer that is not among them.

    The matched one is drawn by hash from the ten that write most nearly as much (`written`: root mean square of |h| |v|). Of a layer at most
    a third of the units are chosen, so that others are left to match.
    Errors: `Refusal` where the discover half has no window, or a layer fewer than three units.
    """
    value = effects.value[Half.DISCOVER].abs()
    if bool(value.isnan().all()):
        raise Refusal("units to be ablated", why="no window is in the discover half", instead="build with more text")
    units = value.shape[1]
    own_rank = value.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    order = value.masked_fill(own_rank >= units // 3, -1.0).flatten().argsort(descending=True, stable=True)
    flat = order[: min(most, len(value) * (units // 3))]
    if not len(flat):
        raise Refusal("units to be ablated", why=f"a layer has {units} units", instead="name a model with three or more")
    layer, index = flat // units, flat % units
    taken = torch.zeros_like(value, dtype=torch.bool)
    taken[layer, index] = True
    beside = []
    for at, own in zip(layer.tolist(), index.tolist(), strict=True):
        far = (written[at].double() - float(written[at, own])).abs().masked_fill(taken[at], torch.inf)
        near = far.argsort(stable=True)[: min(_NEAREST, int((~taken[at]).sum()))]
        if not len(near):
            why = f"all {units} units of layer {at} are chosen or matched"
            raise Refusal("units to be ablated", why=why, instead="ablate fewer")
        found = int(near[int(float(uniform(hash_parts(seed, at, own))) * len(near))])
        taken[at, found] = True
        beside.append(found)
    return Picked(torch.cat([layer, layer]), torch.cat([index, torch.tensor(beside, dtype=torch.int64)]))


def effect_rows(bases: Sequence[Neurons], effects: Effects, run: str) -> pa.Table:
    """Rows of `unit_stats`: loss_effect of every unit in the confirm half, with its 95 % interval and the q-value of its not being 0."""
    value, control, error = (each[Half.CONFIRM] for each in (effects.value, effects.control, effects.error))
    degrees = max(int(effects.windows[Half.CONFIRM]) - 1, 1)
    p = torch.from_numpy(2 * scipy.stats.t.sf((value / error).abs().numpy(), degrees))
    q = benjamini_hochberg(p.flatten()).view_as(p)
    reach = float(scipy.stats.t.ppf(0.975, degrees)) * error
    columns = dict(zip(_COLUMNS, (value, control, value - reach, value + reach, q), strict=True))
    every = [
        _rows(
            basis,
            np.arange(basis.units),
            "loss_effect",
            {name: each[basis.layer] for name, each in columns.items()},
            SHIFTED,
            run,
        )
        for basis in bases
    ]
    return pa.concat_tables(every)


def ablation_rows(bases: Sequence[Neurons], picked: Picked, found: Ablations, run: str) -> pa.Table:
    """Rows of `unit_stats`: loss_ablated of the chosen units, beside their matched ones, over the windows of the confirm half."""
    change, beside = _confirmed(picked, found)
    mean, reach = _mean(change)
    q = _q(change, beside)
    columns = dict(zip(_COLUMNS, (mean, beside.mean(0), mean - reach, mean + reach, q), strict=True))
    tables, layer, index = [], picked.layer[: picked.chosen], picked.index[: picked.chosen]
    for basis in bases:
        mine = (layer == basis.layer).nonzero()[:, 0]
        mine = mine[index[mine].argsort()]
        some = {name: each[mine] for name, each in columns.items()}
        tables.append(_rows(basis, index[mine].numpy(), "loss_ablated", some, MATCHED, run))
    return pa.concat_tables(tables)


def effect_findings(bases: Sequence[Neurons], effects: Effects, picked: Picked, found: Ablations) -> list[Finding]:
    """Units whose ablation changes the held-out loss otherwise than that of a unit that writes as much (q at most 0.01), largest first.

    And how well first-order effects agree with ablations, in which the confirm half has them both.
    """
    change, beside = _confirmed(picked, found)
    if len(change) < 2:
        return []
    q, mean, other = _q(change, beside), change.mean(0), beside.mean(0)
    rows = []
    for place in mean.abs().argsort(descending=True, stable=True).tolist():
        if float(q[place]) > _LARGEST_Q or not abs(float(mean[place])) > abs(float(other[place])):
            continue
        layer, index = int(picked.layer[place]), int(picked.index[place])
        address = bases[layer].address(index)
        matched = bases[layer].address(int(picked.index[picked.chosen + place]))
        first = float(effects.value[Half.CONFIRM, layer, index])
        verb = "rises" if float(mean[place]) > 0 else "falls"
        sentence = (
            f"without {address} the loss of held-out windows {verb} by {abs(float(mean[place])):.2g} nats a token (to first order "
            f"{first:+.2g}); without {matched}, which writes as much, it changes by {float(other[place]):+.2g}"
        )
        rows.append(
            Finding(
                "unit of the loss", str(address), sentence, float(mean[place]), float(other[place]), MATCHED, float(q[place])
            )
        )
    return [*rows, *_agreement(effects, picked, found)]


def _agreement(effects: Effects, picked: Picked, found: Ablations) -> list[Finding]:
    """One sentence, where it can be said."""
    confirm = found.half == Half.CONFIRM
    exact = found.change[confirm].mean(0)
    first = effects.value[Half.CONFIRM, picked.layer, picked.index]
    chosen = torch.arange(len(first)) < picked.chosen
    rank = {name: _spearman(first[mine], exact[mine]) for name, mine in (("chosen", chosen), ("matched", ~chosen))}
    if any(np.isnan(each) for each in rank.values()):
        return []
    ratio = float((exact[chosen] / first[chosen]).median())
    sentence = (
        f"first-order effects rank {picked.chosen} units as their ablations do with a rank correlation of {rank['chosen']:.2f} "
        f"(units that write as much: {rank['matched']:.2f}); an ablation changes the loss {ratio:.2g} times as much in the median"
    )
    return [Finding("first order and ablation", "", sentence, rank["chosen"], rank["matched"], MATCHED)]


def _confirmed(picked: Picked, found: Ablations) -> tuple[Float[Tensor, "window unit"], Float[Tensor, "window unit"]]:
    """Changes of the chosen units in windows of the confirm half, and of those matched to them."""
    change = found.change[found.half == Half.CONFIRM]
    return change[:, : picked.chosen], change[:, picked.chosen :]


def _mean(change: Float[Tensor, "window unit"]) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """Means over windows, and half of their 95 % intervals; NaN for one window."""
    count = len(change)
    reach = (
        float(scipy.stats.t.ppf(0.975, max(count - 1, 1))) * change.std(0) / count**0.5
        if count > 1
        else change.sum(0) * torch.nan
    )
    return change.mean(0), reach


def _q(change: Float[Tensor, "window unit"], beside: Float[Tensor, "window unit"]) -> Float[Tensor, " unit"]:
    """Paired t tests over windows, over all chosen units; NaN where there are fewer than two windows."""
    if len(change) < 2:
        return torch.full(change.shape[1:], torch.nan, dtype=torch.float64)
    gap = change - beside
    error = gap.std(0) / len(gap) ** 0.5
    p = torch.from_numpy(np.asarray(2 * scipy.stats.t.sf((gap.mean(0) / error).abs().numpy(), len(gap) - 1)))
    return benjamini_hochberg(p)


def _spearman(one: Float[Tensor, " unit"], other: Float[Tensor, " unit"]) -> float:
    kept: Bool[Tensor, " unit"] = one.isfinite() & other.isfinite()
    if int(kept.sum()) < 3 or any(bool((each[kept] == each[kept][0]).all()) for each in (one, other)):
        return float("nan")
    ranks = [scipy.stats.rankdata(each[kept].numpy()) for each in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


def _rows(basis: Neurons, units: np.ndarray, stat: str, columns: dict[str, Tensor], control: str, run: str) -> pa.Table:
    zeros = np.zeros(len(units), np.int16)
    return pa.table(
        {
            "unit": address_column(basis, units),
            "site": word_column([str(basis.sites[0])], zeros),
            "stat": word_column([stat], zeros),
            **{name: pa.array(each.double().numpy(), pa.float64(), from_pandas=True) for name, each in columns.items()},
            "control_kind": word_column([control], zeros),
            "run": word_column([run], zeros),
        }
    )
