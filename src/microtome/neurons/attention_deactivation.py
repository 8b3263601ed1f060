"""Units that turn heads off, or on: what a unit writes makes later heads look more, or less, at the first token of a window.

A head that has nothing to do looks at the first token. A unit that writes towards what the head's queries need to meet that token's
key sends it there. Read off the weights and the keys that a text gives (`first_token_heads`, `deactivation`), then tested by removing the
unit (`attention_changes`). What heads do otherwise is the business of `vocabulary` and `geometry`; composition in general, of
`vocabulary.composition`.

Axes of this module: `head` counts the query heads of several layers together, `draw` random directions of a layer,
`chosen` some of its units.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site, UnitAddress
from microtome.intervene import Edit, Set, edited
from microtome.model import Model, Weights, capture, observe
from microtome.model.scoring import Turn, scorings
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.readout import fold_norm, pooled_chance, written

__all__ = [
    "AttentionChanges",
    "Deactivation",
    "FirstTokenHeads",
    "Wanted",
    "attention_changes",
    "as_much",
    "deactivation",
    "first_token_heads",
]

Wanted = Literal["key", "key less others"]
"""What is written towards: the first token's key, or what it has that the mean of the other keys in sight has not."""
_TINY: Final = 1e-30
_AT_ONCE: Final = 8
"""Windows that go through the model together, each with a unit of its own changed."""


@dataclass(frozen=True, eq=False)
class FirstTokenHeads:
    """Of each query head of some layers the direction of the stream that raises its score of the first token.

    `direction` is what a state meets before the division by its length; `attention` the mean attention to the first token over `queries`
    tokens of `windows` windows. Heads by layer, then number.
    """

    layer: Int64[Tensor, " head"]
    number: Int64[Tensor, " head"]
    direction: Float[Tensor, "head d_model"]
    attention: Float64[Tensor, " head"]
    queries: Int64[Tensor, " head"]
    windows: int


@dataclass(frozen=True, eq=False)
class Deactivation:
    """How far the units of a layer write towards what later heads need to look at the first token.

    `cosine` is that of the written vector and a head's direction; `later` are the heads' places in `FirstTokenHeads`, `spread` the root
    mean square cosine of the layer's random directions. `strongest` is of each unit the place in `later` of the head of largest
    |cosine| / spread, `strength` that ratio, `control` its mean over the random directions; p and q are of strength, q over all units.
    NaN for vectors that are 0.
    """

    layer: int
    later: Int64[Tensor, " head"]
    cosine: Float[Tensor, "unit head"]
    spread: Float64[Tensor, " head"]
    strongest: Int64[Tensor, " unit"]
    strength: Float64[Tensor, " unit"]
    control: float
    p: Float64[Tensor, " unit"]
    q: Float64[Tensor, " unit"]

    @property
    def towards(self) -> Float[Tensor, " unit"]:
        """The cosine with the strongest head: above 0, being active sends the head to the first token; below, away from it."""
        return self.cosine.gather(1, self.strongest[:, None])[:, 0]


def first_token_heads(
    model: Model,
    batches: Iterable[Batch],
    layers: Sequence[int] | None = None,
    *,
    wanted: Wanted = "key",
    distances: range | None = None,
    roles: frozenset[Role] = CONTENT,
) -> FirstTokenHeads:
    """The direction of every query head of these layers (None: all), over the counted tokens that see the first one.

        u = fold(W_Q g mean_t R_t' k)      k = rotated key of the first token of t's window, or that less the mean of the others that t sees

    Keys are the model's own, biases, norms and rotation included. Rotary positions: each query's rotation R_t is undone, and the mean is
    over the queries' distances from the first token that occur, or over `distances` alone; planes that turn fast go out in
    it. g is the gain of a QK-norm, whose division is left out, as are query biases: they are the same for all units. Gain and
    centring of the norm before attention are folded in. Grouped heads share a key, not a direction.
    Errors: `Refusal` for no query that sees a first token.
    Cost: a forward pass with attention patterns. Memory: those of a batch and layer.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on attention deactivation.
    """
    chosen = sorted(set(range(model.shape.layers) if layers is None else layers))
    sums = {layer: torch.zeros(model.shape.heads, model.shape.d_head, dtype=torch.float64) for layer in chosen}
    seen = {layer: torch.zeros(2, model.shape.heads, dtype=torch.float64) for layer in chosen}
    windows = 0
    for batch in batches:
        turn = {layer: each.turn for layer, each in scorings(model, batch, chosen).items()}
        counted = batch.counted(roles).cpu()
        counted[:, 0] = False
        if distances is not None:
            counted &= torch.isin(torch.arange(counted.shape[1]), torch.tensor(list(distances)))
        keys: dict[int, Tensor] = {}

        read = (batch.roles != Role.PAD).cpu()

        def receive(
            site: Site, value: Any, counted: Tensor = counted, read: Tensor = read, turn: Any = turn, keys: Any = keys
        ) -> None:
            at = site.layer or 0
            if site.name == "k_rot":
                keys[at] = value.float().cpu()
                return
            attention = value[..., 0].float().cpu().transpose(1, 2)  # window query head
            looks = ((attention > 0) & counted[..., None]).double()
            seen[at] += torch.stack([looks.sum((0, 1)), (looks * attention).sum((0, 1))])
            shared = attention.shape[2] // keys[at].shape[2]
            mean = None if wanted == "key" else _others(keys[at], read, causal=model.shape.causal)
            sought = _sought(keys[at], turn[at], mean).double()
            weights = looks.unflatten(2, (-1, shared))
            sums[at] += torch.einsum("wtks,wtkd->ksd", weights, sought).flatten(0, 1)

        observe(model, batch, [Site(name, layer) for layer in chosen for name in ("k_rot", "attn_probs")], receive)
        windows += len(batch.ids)
    return _heads(model.weights, chosen, sums, seen, windows)


def _heads(weights: Weights, chosen: Sequence[int], sums: Any, seen: Any, windows: int) -> FirstTokenHeads:
    if not chosen or not windows or min(float(seen[layer][0].min()) for layer in chosen) == 0:
        why = "a head has no counted token that sees the first token of its window"
        raise Refusal("directions of first tokens", why=why, instead="give windows of several tokens, or other layers")
    count = torch.cat([seen[layer][0] for layer in chosen])
    mean = {layer: sums[layer] / seen[layer][0][:, None] for layer in chosen}
    heads = weights.shape.heads
    return FirstTokenHeads(
        torch.tensor(chosen).repeat_interleave(heads),
        torch.arange(heads).repeat(len(chosen)),
        torch.cat([_direction(weights, layer, mean[layer].float()) for layer in chosen]),
        torch.cat([seen[layer][1] for layer in chosen]) / count,
        count.long(),
        windows,
    )


def _others(
    keys: Float[Tensor, "window token head_kv d_head"], read: Bool[Tensor, "window token"], *, causal: bool
) -> Float[Tensor, "window token head_kv d_head"]:
    """For each query's place the mean of the keys behind the first that it sees."""
    behind = read.clone()
    behind[:, 0] = False
    kept = behind[..., None, None].to(keys)
    sums, count = (keys * kept).cumsum(1), kept.cumsum(1)
    if not causal:
        sums, count = sums[:, -1:].expand_as(sums), count[:, -1:]
    return sums / count.clamp_min(1)


def _sought(
    keys: Float[Tensor, "window token head_kv d_head"],
    turn: Turn | None,
    others: Float[Tensor, "window token head_kv d_head"] | None,
) -> Float[Tensor, "window token head_kv d_head"]:
    """For each query's place the first token's key, less that of others, as a query meets it that has not turned yet."""
    sought = keys[:, :1].expand_as(keys) if others is None else keys[:, :1] - others
    if turn is None:
        return sought
    cos, sin = (table[: keys.shape[1]].cpu()[:, None] for table in (turn.cos, turn.sin))
    # the transpose of `scoring.turned`; coordinates that do not turn name any partner, with a sine of 0
    return (sought * cos).index_add(-1, turn.partner.cpu(), sought * sin)


def _direction(weights: Weights, layer: int, sought: Float[Tensor, "head d_head"]) -> Float[Tensor, "head d_model"]:
    if weights.has("q_norm", layer):
        gain = weights.norm("q_norm", layer).gain.to("cpu", torch.float32)
        sought = sought * gain.view(-1, sought.shape[1])
    rows = torch.einsum("hde,he->hd", weights.get("W_Q", layer).to("cpu", torch.float32), sought)
    return fold_norm(weights.norm("attn_norm", layer), rows) if weights.has("attn_norm", layer) else rows


def deactivation(
    weights: Weights, heads: FirstTokenHeads, layers: Sequence[int] | None = None, *, draws: int = 1024, seed: int = 0
) -> list[Deactivation]:
    """Every unit of these layers (None: all) against every head of later layers, beside random directions of the unit's layer.

    A random direction is a Gaussian mixture of the layer's own vectors of length 1, as in `roles`. A unit is judged by its strongest
    head, and so is each of them, so that many heads make nothing significant; p is the rank among the draws of all layers, each in its own
    layer's width (`readout.pooled_chance`), and not below 1 / (draws layers). Layers without a later head are left out. In a post-norm
    model gains and centrings of the norms on the way are folded in, and only the stream's direct way is meant: what attention
    and blocks in between make of a unit is not asked.
    Errors: `Refusal` for a mixture of experts.
    Cost: 2 d_model FLOP for each unit or draw and head. Memory: 4 bytes for each unit and later head.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on attention deactivation.
    """
    if weights.shape.experts:
        why = "units of experts are written with the router's weights"
        raise Refusal("heads turned off by units", why=why, instead="use a model with dense feed-forward blocks")
    found, null = [], []
    for layer in range(weights.shape.layers) if layers is None else layers:
        later = (heads.layer > layer).nonzero()[:, 0]
        if not len(later):
            continue
        columns = _unit(_as_met(weights, layer, heads, later))
        vectors = written(weights, layer, weights.get("W_out", layer).to("cpu", torch.float32), "mlp")
        unit = _unit(vectors)
        drawn = torch.randn(draws, len(unit), generator=torch.Generator().manual_seed(int(hash_parts(seed, layer))))
        chance = (_unit(drawn @ unit) @ columns.T).double()
        spread = chance.square().mean(0).sqrt().clamp_min(_TINY)
        cosine = unit @ columns.T
        strength, strongest = (cosine.double() / spread).abs().max(1)
        by_chance = (chance / spread).abs().amax(1)
        tested = torch.where(vectors.norm(dim=1) > 0, strength, torch.nan)
        found.append((layer, later, cosine, spread, strongest, tested, float(by_chance.mean())))
        null.append(by_chance[:, None])
    p = pooled_chance([each[5].nan_to_num(0.0) for each in found], null, "greater")
    p = [torch.where(each[5].isnan(), torch.nan, own.double()) for each, own in zip(found, p, strict=True)]
    q = benjamini_hochberg(torch.cat(p)).split([len(own) for own in p]) if p else []
    return [Deactivation(*each, *tests) for each, *tests in zip(found, p, q, strict=True)]


def _unit(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY)


def _as_met(
    weights: Weights, layer: int, heads: FirstTokenHeads, later: Int64[Tensor, " head"]
) -> Float[Tensor, "head d_model"]:
    """Directions of later heads as a vector written at `layer` meets them: through the norms that the stream itself passes."""
    rows = heads.direction[later]
    if weights.has("attn_norm", layer):  # pre-norm: nothing is on the way
        return rows
    rows, at = rows.clone(), heads.layer[later]
    for passed in range(int(at.max()) - 1, layer, -1):
        behind = at > passed
        for name in ("mlp_norm_post", "attn_norm_post"):
            if weights.has(name, passed):
                rows[behind] = fold_norm(weights.norm(name, passed), rows[behind])
    return rows


@dataclass(frozen=True, eq=False)
class AttentionChanges:
    """What setting one unit at a time does to a head's attention to the first token: means over a window's counted tokens.

    `attention` is that of the unchanged model, `change` the difference; `when_active` the difference at the tokens at which the unit
    is most active there, by size, and `activation` its mean activation at these.
    """

    layer: int
    head: int
    units: tuple[UnitAddress, ...]
    attention: Float64[Tensor, " window"]
    change: Float64[Tensor, "window unit"]
    when_active: Float64[Tensor, "window unit"]
    activation: Float64[Tensor, "window unit"]


def attention_changes(
    model: Model,
    batches: Iterable[Batch],
    head: tuple[int, int],
    units: Sequence[UnitAddress],
    *,
    values: Sequence[float] | None = None,
    active: float = 0.1,
    roles: frozenset[Role] = CONTENT,
) -> AttentionChanges:
    """Set each unit to its value (None: 0) at the counted tokens, and measure a later head's (layer, number) attention to the first.

    The first token itself is left as it is, so that its key stays. The control is the same of units that write as much (`as_much`).
    `active` is the share of a window's tokens that count as those at which a unit is most active; windows without a counted token
    behind the first are left out.
    Errors: `Refusal` for units that do not come before the head, for a mixture of experts, and where no window can be used.
    Cost: a forward pass up to the head's layer for each window and unit. Memory: the patterns of eight windows.
    Source: Gurnee et al. 2024, arXiv:2401.12181, on attention deactivation.
    """
    late = [str(unit) for unit in units if (unit.layer or 0) >= head[0]]
    if late or model.shape.experts:
        why = f"{late[0]} is not below layer {head[0]}" if late else "units of experts are met by some tokens only"
        raise Refusal("attention without a unit", why=why, instead="name dense units of earlier layers")
    held = torch.zeros(len(units)) if values is None else torch.tensor(list(values), dtype=torch.float32)
    parts: list[tuple[Tensor, ...]] = []
    for batch in batches:
        for row in range(len(batch.ids)):
            alone = batch.alone(row)
            counted = alone.counted(roles)[0].cpu()
            counted[0] = False
            if bool(counted.any()):
                parts.append(_of_window(model, alone, head, units, held, counted, active))
    if not parts:
        why = "no window has a counted token behind its first"
        raise Refusal("attention without a unit", why=why, instead="give windows of several tokens")
    columns = (torch.stack(list(each)).double() for each in zip(*parts, strict=True))
    return AttentionChanges(*head, tuple(units), *columns)


def _of_window(
    model: Model,
    batch: Batch,
    head: tuple[int, int],
    units: Sequence[UnitAddress],
    held: Float[Tensor, " unit"],
    counted: Bool[Tensor, " token"],
    active: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention, its change, its change where a unit is most active, and the activation there."""
    pattern, sites = Site("attn_probs", head[0]), {unit.layer or 0: Site("mlp_act", unit.layer) for unit in units}
    clean = capture(model, batch, [*sites.values(), pattern])
    attention = clean[pattern][0, head[1], :, 0].double().cpu()[counted]
    change = torch.zeros(len(units), len(attention), dtype=torch.float64)
    own = torch.stack([clean[sites[unit.layer or 0]][0, :, unit.index].double().cpu()[counted] for unit in units])
    for layer, site in sites.items():
        mine = torch.tensor([place for place, unit in enumerate(units) if unit.layer == layer])
        for some in mine.split(_AT_ONCE):
            states = clean[site].repeat(len(some), 1, 1)
            for row, place in enumerate(some.tolist()):
                states[row, counted.to(states.device), units[place].index] = float(held[place])
            copies = batch.take(torch.zeros(len(some), dtype=torch.int64))
            with edited(model, copies, [Edit(site, Set(states))]):
                found = capture(model, copies, [pattern])[pattern][:, head[1], :, 0].double().cpu()
            change[some] = found[:, counted] - attention
    most = own.abs().topk(max(1, round(active * own.shape[1])), dim=1).indices
    return attention.mean(), change.mean(1), change.gather(1, most).mean(1), own.gather(1, most).mean(1)


def as_much(size: Float[Tensor, " unit"], unit: int, count: int, taken: Sequence[int] = ()) -> Int64[Tensor, " chosen"]:
    """The `count` units of the same layer that write most nearly as much (`size`: root mean square of h times |v|, say), `taken` left out."""
    far = (size.double() - float(size[unit])).abs()
    far[[unit, *taken]] = torch.inf
    return far.sort(stable=True).indices[: min(count, int(far.isfinite().sum()))]
