"""Sub-updates: what single units add to the scores of tokens where a layer changes its mind, and what they do when they are switched on.

A unit adds h v to the stream, and h (e_w . v) to the score of token w. Where a layer changes the top token, its dominant units may promote the
new one, or eliminate the old. How all units of a layer add up belongs in `aggregation`; which tokens one value says, in `memories`.
Axes of this module: `event`, a token at which a layer changes the top token; `dominant`, its units of the longest sub-updates; `pick`, the
dominant units and the random ones.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Site, token_keys
from microtome.intervene import Edit, Set, edited, final_states
from microtome.model import Model, final_norm, unembed
from microtome.neurons.aggregation import activity, before_feed_forward, random_place, rows_at
from microtome.numerics import bootstrap_interval, permutation_p
from microtome.readout import Reader, output_reader, written

__all__ = [
    "RANDOM_ACTIVE",
    "RANDOM_UNITS",
    "Events",
    "NormReading",
    "Switched",
    "Values",
    "events",
    "shifts",
    "switched_on",
    "values_of",
]

NormReading = Literal["gain-only", "final", "none"]
"""What a value goes through before it meets the token vectors: the last norm's gain (and the centring of a layer norm), which is linear;
the whole last norm, which also gives every value the same length, as in the paper's script; or nothing."""
RANDOM_ACTIVE: Final = "as many other active units of the layer"
RANDOM_UNITS: Final = "units of the same layer set to write as much"
_HELD: Final = 256


@dataclass(frozen=True, eq=False)
class Values:
    """The values of a layer as they are read: `rows`, the reader, and the lengths with which they arrive in the stream."""

    layer: int
    norm: NormReading
    rows: Float[Tensor, "unit d_model"]
    reader: Reader
    length: Float[Tensor, " unit"]


@dataclass(frozen=True, eq=False)
class Events:
    """Tokens at which a layer changes the top token, `before` to `after`, as the model's own last norm and head read the stream.

    `promoted` is the mean over units of what they add to the score of the new token, above what they add to tokens in the mean; `eliminated` the
    same for the old one: units that eliminate have it below 0. Of the dominant units, and of as many other active ones. `tokens` were looked at.
    Scores are not divided by the stream's length: compare within a layer.
    """

    layer: int
    norm: NormReading
    window: Int[Tensor, " event"]
    token: Int[Tensor, " event"]
    document: Int[Tensor, " event"]
    before: Int[Tensor, " event"]
    after: Int[Tensor, " event"]
    units: Int[Tensor, "event dominant"]
    coefficients: Float[Tensor, "event dominant"]
    promoted: Float[Tensor, "event pick"]
    eliminated: Float[Tensor, "event pick"]
    tokens: int
    seed: int

    def mean(self, values: Float[Tensor, "event pick"]) -> tuple[float, float, float, float]:
        """Mean over events of the dominant units, its 95 % interval by documents (NaN for one), and the mean of the control where it is."""
        own, beside = values.double().unbind(1)
        groups, group = self.document.unique(return_inverse=True)
        low = high = torch.nan
        if len(groups) > 1:
            sums = torch.zeros(len(groups), dtype=torch.float64).index_add_(0, group, own)
            ends = bootstrap_interval(sums, group.bincount().double(), seed=self.seed)
            low, high = (float(end) for end in ends)
        return float(own.mean()), low, high, float(beside.nanmean())


@dataclass(frozen=True, eq=False)
class Switched:
    """Units held at a value at every token, and the mean probability of the tokens that this promotes, all of them together.

    `before` is that of the model as it is, `after` with the units on, `random` with other units of the same layers that write as much in sum of
    lengths, a draw at a time; p is how often these raise it as much.
    """

    units: tuple[tuple[int, int], ...]
    value: float
    tokens: Int[Tensor, " promoted"]
    before: float
    after: float
    random: Float[Tensor, " draw"]
    p: float


def values_of(model: Model, layer: int, norm: NormReading = "gain-only") -> Values:
    """The values of a layer, to be read with this norm.

    Errors: `Refusal` for a mixture of experts. Cost: a float32 copy of the output vectors, 2 vocab d_model^2 FLOP.
    Source: Geva et al. 2022, arXiv:2203.14680, section 3.
    """
    if model.shape.experts:
        raise Refusal(
            f"sub-updates of {model.name}", why="units of experts are not there at every token", instead="use a dense model"
        )
    rows = written(model.weights, layer, model.weights.get("W_out", layer).float(), "mlp")
    length = rows.norm(dim=1)
    if norm == "final":
        with torch.inference_mode():
            rows = final_norm(model, rows.to(model.dtype)).float()
    reader = output_reader(model.weights, folding="folded" if norm == "gain-only" else "raw")
    return Values(layer, norm, rows, reader, length)


def shifts(
    values: Values,
    units: Int[Tensor, "event dominant"],
    coefficients: Float[Tensor, "event dominant"],
    token: Int[Tensor, " event"],
) -> Float[Tensor, "event dominant"]:
    """What units add to the score of a token of each event, above the mean over the vocabulary: h (e_w - mean e) . v."""
    reader, rows = values.reader, values.rows
    column = torch.searchsorted(reader.tokens, token.to(reader.tokens))
    target = reader.matrix[:, column].T
    own = reader.entering(rows[units.flatten()]).view(*units.shape, -1)
    average = reader.average(rows)[units].to(own)
    return coefficients.to(own) * (torch.einsum("eud,ed->eu", own, target) - average)


def events(
    model: Model, batches: Iterable[Batch], values: Values, *, dominant: int = 10, places: int = 1, seed: int = 0
) -> Events:
    """Look at `places` random tokens of every window, and at those where the layer changes the top token at its dominant units.

    Dominant are the units of the largest |h| |v|, which no scaling or reversal of a unit changes; ties go to the lower unit. Events with too few
    other active units have a control of NaN.
    Errors: `Refusal` where no token was an event, and as in `aggregation.rows_at`.
    Cost: `places` forward passes up to the layer, and 4 d_model vocab FLOP a token.
    Source: Geva et al. 2022, arXiv:2203.14680.
    """
    layer, found, tokens = values.layer, [], 0
    before_site, behind_site = before_feed_forward(model, layer), Site("resid_post", layer)
    names = ("mlp_act", "mlp_pre", *(["mlp_pre_linear"] if model.shape.gated else []))
    sites = (before_site, behind_site, *(Site(name, layer) for name in names))
    for batch in batches:
        for draw in range(places):
            row, place = random_place(batch, seed + draw, CONTENT)
            tokens += len(row)
            held = rows_at(model, batch, sites, row, place)
            before, after = (_read(model, held[site]) for site in (before_site, behind_site))
            new = (before != after).nonzero()[:, 0]
            if len(new):
                act, active = held[Site("mlp_act", layer)][new].float(), activity(model, held, layer)[0][new]
                at = {"window": batch.window[row[new]], "token": place[new], "document": batch.document[row[new]]}
                drawn = _dominance(values, act, active, dominant, seed + draw)
                found.append({**at, **_added(values, act, drawn, before[new], after[new])})
    if not found:
        why = f"layer {layer} changes the top token at none of {tokens} tokens"
        raise Refusal("events", why=why, instead="give more text, or another layer")
    return Events(layer, values.norm, **_once(found), tokens=tokens, seed=seed)


def switched_on(
    model: Model,
    batch: Batch,
    values: Values,
    units: Sequence[int],
    value: float,
    *,
    promoted: int = 10,
    draws: int = 20,
    seed: int = 0,
) -> Switched:
    """Hold units of a layer at `value` at every token, and compare with other units that are held so as to write as much.

    Promoted tokens are the first of the sum of what the units then add, value times the sum of their values. Random units have the same lengths
    in turn: |h| |v| is that of the unit whose place they take, and the sign is drawn.
    Errors: `Refusal` for a unit that the layer does not have, and where there are not as many others.
    Cost: draws + 2 forward passes, and as many times 2 d_model vocab FLOP for a token.
    Source: Geva et al. 2022, arXiv:2203.14680, section 6.1.
    """
    count, own = len(values.rows), torch.tensor(list(units))
    if not len(own) or int(own.min()) < 0 or int(own.max()) >= count or 2 * len(own) > count:
        why = f"layer {values.layer} has {count} units, of which as many again are the control"
        raise Refusal(f"switching on {len(own)} units", why=why, instead=f"name some of 0 to {count - 1}")
    total = (value * values.rows[own]).sum(0, keepdim=True)
    scores = (values.reader.entering(total) @ values.reader.matrix)[0]
    tokens = values.reader.tokens[scores.topk(min(promoted, len(scores))).indices]
    generator, lengths = torch.Generator().manual_seed(seed), values.length.cpu()
    others = torch.tensor([unit for unit in range(count) if unit not in set(own.tolist()) and lengths[unit] > 0])
    drawn = []
    for _ in range(draws):
        chosen = others[torch.randperm(len(others), generator=generator)[: len(own)]]
        sign = 2.0 * torch.randint(0, 2, (len(own),), generator=generator) - 1
        set_to = sign * abs(value) * lengths[own] / lengths[chosen]
        drawn.append(_mass(model, batch, values.layer, chosen, set_to, tokens))
    before = _mass(model, batch, values.layer, own[:0], torch.zeros(0), tokens)
    after = _mass(model, batch, values.layer, own, torch.full((len(own),), float(value)), tokens)
    null = torch.tensor(drawn, dtype=torch.float64)
    p = permutation_p(torch.tensor([after], dtype=torch.float64), null[:, None])
    return Switched(
        tuple((values.layer, unit) for unit in own.tolist()), float(value), tokens.cpu(), before, after, null, float(p)
    )


def _read(model: Model, stream: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
    """The top token of each state."""
    with torch.inference_mode():
        return unembed(model, final_norm(model, stream)).argmax(1)


def _dominance(
    values: Values, act: Float[Tensor, "event unit"], active: Bool[Tensor, "event unit"], dominant: int, seed: int
) -> tuple[Int[Tensor, "event dominant"], Int[Tensor, "event dominant"], Bool[Tensor, " event"]]:
    """The dominant units, as many random ones among the other active ones, and whether there were as many."""
    size = act.abs() * values.length.to(act)
    first = size.sort(dim=1, descending=True, stable=True).indices[:, :dominant]
    others = active & (act != 0)
    others = others.scatter(1, first, torch.zeros_like(first, dtype=torch.bool))
    drawn = torch.rand(act.shape, generator=torch.Generator().manual_seed(seed)).to(act.device).masked_fill(~others, -1)
    return first, drawn.argsort(1, descending=True)[:, :dominant], others.sum(1) >= dominant


def _added(
    values: Values,
    act: Float[Tensor, "event unit"],
    picks: tuple[Int[Tensor, "event dominant"], Int[Tensor, "event dominant"], Bool[Tensor, " event"]],
    before: Int[Tensor, " event"],
    after: Int[Tensor, " event"],
) -> dict[str, Tensor]:
    first, other, enough = picks
    both = {"promoted": after, "eliminated": before}
    found = {}
    for name, token in both.items():
        own, beside = (shifts(values, units, act.gather(1, units), token).mean(1) for units in (first, other))
        found[name] = torch.stack([own, beside.masked_fill(~enough, torch.nan)], 1)
    return {**found, "before": before, "after": after, "units": first, "coefficients": act.gather(1, first)}


def _once(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All events in the order of the text; a token that was drawn twice counts once."""
    columns = {name: torch.cat([each[name].cpu() for each in found]) for name in found[0]}
    key = token_keys(columns["window"], columns["token"])
    order = key.argsort(stable=True)
    kept = torch.ones(len(order), dtype=torch.bool)
    kept[1:] = key[order][1:] != key[order][:-1]
    return {name: tensor[order[kept]] for name, tensor in columns.items()}


def _mass(
    model: Model,
    batch: Batch,
    layer: int,
    units: Int[Tensor, " unit"],
    value: Float[Tensor, " unit"],
    tokens: Int[Tensor, " promoted"],
) -> float:
    """The mean probability of the tokens at counted places, with units held at their values."""
    edits = [Edit(Site("mlp_act", layer), Set(value), units.tolist())] if len(units) else []
    with edited(model, batch, edits), torch.inference_mode():
        states = final_states(model, batch)[batch.counted(CONTENT)]
        parts = [unembed(model, some).double().softmax(1)[:, tokens.to(some.device)].sum(1) for some in states.split(_HELD)]
    return float(torch.cat(parts).mean())
