"""How the heads of a layer turn queries and keys into scores, as numbers: rotation, scale, soft cap, bias by key.

A family writes these down once, as formulas. Here they are asked what they do to basis vectors and to zeros, so that whoever
needs the pieces (a query's parts must each be rotated, say) has them for every family without a second list of facts. The
formulas themselves belong in `families.attention`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from microtome.core import Batch, Refusal, Role, Site
from microtome.model.families import Facts, Recipe
from microtome.model.families.rows import Part
from microtome.model.model import Model
from microtome.model.observe import observe

__all__ = ["Scoring", "Turn", "allowed_keys", "asking_scores", "asking_turn", "scorings", "turned", "undone"]

_FAINT: Final = 1e-3
"""Size of queries and keys whose scores a soft cap leaves alone."""
_LOUD: Final = 1e4
"""Size of those whose scores are at the cap."""


@dataclass(frozen=True, eq=False)
class Turn:
    """Rotary embedding as a table: at position t, x_i becomes cos_ti x_i + sin_ti x_partner(i)."""

    cos: Float[Tensor, "token d_head"]
    sin: Float[Tensor, "token d_head"]
    partner: Int[Tensor, " d_head"]


@dataclass(frozen=True, eq=False)
class Scoring:
    """The scores of a layer's heads: cap tanh(s / cap) + bias_j with s = scale turn_i(q_i) . turn_j(k_j).

    Queries and keys are those after a QK-norm. `turn`, `cap` and `bias` are None where the layer has none; the bias is ALiBi's.
    """

    scale: float
    cap: float | None
    turn: Turn | None
    bias: Float[Tensor, "head key"] | None


@dataclass(frozen=True)
class _Unnormed(Facts):
    """Facts of a layer whose QK-norms pass on what they are given."""

    norms: frozenset[str] = frozenset()

    def at(self, path: str) -> Any:
        """The module at `path`, or one that does nothing in the place of a norm."""
        return nn.Identity() if path in self.norms else super().at(path)


def turned(
    turn: Turn | None, x: Float[Tensor, "*any token head d_head"], places: Int[Tensor, " token"]
) -> Float[Tensor, "*any token head d_head"]:
    """Queries or keys as they meet each other; token t of `x` stands at position places[t]."""
    if turn is None:
        return x
    if len(turn.cos) <= int(places.max()):
        raise Refusal(
            f"the rotation of position {int(places.max())}",
            why=f"the window it was learnt from has {len(turn.cos)} tokens",
            instead="call `scorings` with a longer window",
        )
    cos, sin = (table.to(device=x.device, dtype=x.dtype)[places.to(table.device)][:, None] for table in (turn.cos, turn.sin))
    return x * cos + x[..., turn.partner.to(x.device)] * sin


def scorings(model: Model, batch: Batch, layers: Iterable[int]) -> dict[int, Scoring]:
    """The scoring of each of `layers`, for positions up to those of the longest window in `batch`.

    Rotations hold for windows of other lengths unless the model scales its frequencies with the length.
    Cost: a forward pass over one window.
    Errors: `Refusal` for a bias that depends on the query, which no family has so far.
    """
    wanted = dict.fromkeys(layers)
    tables: dict[int, Turn | None] = {}
    scores: dict[int, tuple[float, float | None, Tensor | None]] = {}
    row = model.family
    asked = Part(
        {
            "q_rot": Recipe(row.sites["q_rot"].taps, asking_turn(model)),
            "attn_scores": Recipe(row.sites["attn_scores"].taps, asking_scores(model)),
        }
    )

    def receive(site: Site, found: Any) -> None:
        assert site.layer is not None
        (tables if site.name == "q_rot" else scores)[site.layer] = found

    sites = [Site(name, layer) for layer in wanted for name in ("q_rot", "attn_scores")]
    observe(replace(model, family=replace(row, parts=(*row.parts, asked))), _longest(batch), sites, receive)
    return {layer: Scoring(*undone(scores[layer], tables[layer]), tables[layer], scores[layer][2]) for layer in wanted}


def allowed_keys(scores: Float[Tensor, "*any query key"]) -> Bool[Tensor, "*any query key"]:
    """Which keys a query may see: where its scores are not near the lowest number, of fp32 or of a narrower dtype."""
    return scores > max(torch.finfo(scores.dtype).min, torch.finfo(torch.float32).min) / 2


def _longest(batch: Batch) -> Batch:
    """The longest window of a batch, alone and without padding."""
    return batch.alone(int((batch.roles != Role.PAD).sum(1).argmax()))


def _unnormed(model: Model, facts: Facts) -> Facts:
    rows = model.family.norms
    norms = frozenset(rows[name].module for name in ("q_norm", "k_norm") if name in rows)
    return _Unnormed(facts.shape, facts.config, facts.block, facts.layer, facts.windows, facts.tokens, norms)


def asking_turn(model: Model) -> Callable[..., Turn | None]:
    """A recipe's function that answers with the layer's rotation instead of rotated queries."""
    split, rotate = model.family.sites["q"].compute, model.family.sites["q_rot"].compute

    def ask(facts: Facts, value: Tensor, *positions: Any) -> Turn | None:
        heads, width = facts.shape.heads, facts.shape.d_head
        rounds = -(-width // heads)
        basis = value.new_zeros(rounds, *value.shape[1:], dtype=torch.promote_types(value.dtype, torch.float32))
        axis = torch.arange(width, device=value.device)
        split(facts, basis)[axis // heads, :, axis % heads, axis] = 1
        spun = rotate(_unnormed(model, facts), basis, *positions)[axis // heads, :, axis % heads]
        return _table(spun.clone())  # (from, token, to)

    return ask


def _table(spun: Float[Tensor, "d_head token to"]) -> Turn | None:
    """The rotation from what became of each basis vector at each position; None if nothing did."""
    cos = spun.diagonal(dim1=0, dim2=2).clone()
    spun.diagonal(dim1=0, dim2=2).zero_()
    partner = spun.abs().amax(1).argmax(0)
    own = torch.arange(len(partner), device=partner.device)
    sin = spun[partner, :, own].T.clone()
    spun[partner, :, own] = 0
    assert not bool(spun.any()), "a rotation mixes more than two coordinates"
    return None if bool((cos == 1).all()) and not bool(sin.any()) else Turn(cos, sin, partner)


def asking_scores(model: Model) -> Callable[..., tuple[float, float, Tensor | None]]:
    """A recipe's function that answers with the scores of faint and of loud queries at the first token, and with the bias."""
    recipe, parts = model.family.sites["attn_scores"], {name: model.family.sites[name] for name in ("q", "k")}
    fused = recipe.taps[0] == recipe.taps[1]

    def ask(facts: Facts, *tapped: Any) -> tuple[float, float, Tensor | None]:
        bare = _unnormed(model, facts)

        def scores(size: float) -> Tensor:
            wide = torch.promote_types(tapped[0].dtype, torch.float32)
            sides = [torch.zeros_like(value, dtype=wide) for value in tapped[:2]]
            sides = [sides[0], sides[0]] if fused else sides
            for side, part in zip(sides, parts.values(), strict=True):
                part.compute(facts, side)[..., 0] = size
            return recipe.compute(bare, *sides, *tapped[2:])[0].clone()

        at_zero = scores(0.0)
        faint, loud = (float(scores(size)[0, 0, 0] - at_zero[0, 0, 0]) for size in (_FAINT, _LOUD))
        return faint, loud, _key_bias(at_zero)

    return ask


def _key_bias(scores: Float[Tensor, "head query key"]) -> Float[Tensor, "head key"] | None:
    """What scores are where queries and keys are zero; None where they are zero too."""
    allowed = allowed_keys(scores)
    bias = scores[:, -1].clone()
    if not bool((scores == bias[:, None])[allowed].all() & allowed[:, -1].all()):
        if not bool(scores[allowed].any()):
            return None  # no bias, and a last token that does not see all others
        raise Refusal(
            "the bias of attention scores", why="it depends on the query", instead="use a model with ALiBi or without"
        )
    return bias if bool(bias.any()) else None


def undone(found: tuple[float, float | None, Tensor | None], turn: Turn | None) -> tuple[float, float | None]:
    """Scale and soft cap from the answers to `asking_scores`."""
    faint, loud, _ = found
    assert loud is not None
    length = 1.0 if turn is None else float(turn.cos[0, 0].square() + turn.sin[0, turn.partner[0]].square())
    scale = faint / _FAINT**2 / length
    return scale, (loud if loud < scale * length * _LOUD**2 / 2 else None)
