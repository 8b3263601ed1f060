"""Units as key-value memories: does the value say the token that follows where the key fires?

A unit's value is its row of W_out, read in the vocabulary; where its key fires is known from its contexts (`examples`). Whether the
surface of these contexts is alike belongs in `removal`, what many units add up to in `aggregation`, events at which they change the top
token in `promotion`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Half, Refusal
from microtome.examples import Contexts
from microtome.model import Model
from microtome.numerics import matmul_topk
from microtome.readout import Reader, quickest, written

__all__ = ["SHUFFLED", "Agreement", "ValueTokens", "agreement_share", "most_confident", "value_agreement", "value_tokens"]

SHUFFLED: Final = "values shuffled among the units of the layer"
_ROWS: Final = 256
"""Units whose scores over the vocabulary are held at once."""


@dataclass(frozen=True, eq=False)
class ValueTokens:
    """The first token of +v and of -v of every unit of a layer, and how far it stands out.

    `strength` is the distance of the first score from the mean over the vocabulary in standard deviations: unlike the probability of the
    paper it does not change when W_up is scaled against W_out. A value of zeros has no first token: -1, and NaN.
    """

    layer: int
    token: Int[Tensor, "unit end"]
    strength: Float[Tensor, "unit end"]


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of every unit of a layer: its leading trigger, the token that follows it, and what the value says of it.

    `following` is -1 where the unit has no trigger in the half, or one that no ordinary token follows; then nothing else is defined, and the
    unit is not `tried`. `sign` is that of the activation at the trigger, `token` the first token of sign v, `strength` how far it stands
    out, `rank` that of the following token among the scores of sign v, 0 the first (ties share their middle; NaN where undefined).
    `share` of the units tried have token = following. `chance` is what that share is in the mean when values are exchanged among the units
    tried, `low` to `high` its middle 95 %, and `p` how often it is at least `share` in `draws` exchanges. NaN where no unit is tried.
    """

    layer: int
    half: Half
    following: Int[Tensor, " unit"]
    sign: Int[Tensor, " unit"]
    token: Int[Tensor, " unit"]
    strength: Float[Tensor, " unit"]
    rank: Float[Tensor, " unit"]
    share: float
    chance: float
    low: float
    high: float
    p: float
    draws: int
    seed: int

    @property
    def tried(self) -> int:
        """Units with a trigger, a token behind it and a value."""
        return int((self.following >= 0).sum())

    @property
    def median_rank(self) -> float:
        """Of the following token, 0 first; a value that knows nothing has about half of the vocabulary."""
        return float(self.rank.nanmedian())


def value_tokens(model: Model, layer: int, reader: Reader) -> ValueTokens:
    """Read both ends of every value of a layer, as it arrives in the stream.

    With `readout.output_reader(weights)` the gain of the last norm is folded in, with folding "raw" values are read as in the paper.
    Errors: `Refusal` for a mixture of experts. Cost: 2 units d_model vocab FLOP.
    """
    rows = _values(model, layer).to(reader.matrix)
    ends = matmul_topk(reader.entering(rows), reader.columns, 1, precision=quickest(rows.device))
    token = reader.tokens[torch.cat([ends.top_index, ends.bottom_index], 1)]
    above = torch.cat([ends.top, ends.bottom], 1).double() - reader.average(rows)[:, None]
    spread = reader.spread(rows)[:, None]
    strength = above * torch.tensor([1.0, -1.0], dtype=torch.float64, device=above.device) / spread
    empty = (rows == 0).all(1, keepdim=True)
    return ValueTokens(layer, token.masked_fill(empty, -1).cpu(), strength.masked_fill(empty, torch.nan).cpu())


def value_agreement(
    model: Model,
    contexts: Contexts,
    values: ValueTokens,
    reader: Reader,
    *,
    half: Half = Half.CONFIRM,
    draws: int = 4000,
    seed: int = 0,
) -> Agreement:
    """Compare each unit's value with the token that follows its leading trigger.

    The trigger is the context where |h| is largest: at either end of a gated unit, whose sign is a matter of spelling, and with h > 0 of a
    plain one, whose negative activations are the floor of its nonlinearity. The value that counts is sign(h) v. `contexts` are those of the
    layer's basis, `values` and `reader` what its values were read with; a following token that the reader leaves out is not tried.
    Errors: `Refusal` for a model that attends to what follows, and for contexts of another number of units.
    Cost: 2 units d_model vocab FLOP for the ranks.
    Source: Geva et al. 2021, arXiv:2012.14913, section 4.
    """
    if not model.shape.causal:
        why = "it attends to the tokens that follow, so that its units need not predict them"
        raise Refusal(f"value agreement of {model.name}", why=why, instead="use a causal language model")
    if contexts.value.shape[1] != len(values.token):
        why = f"they are of {contexts.value.shape[1]} units, and the layer has {len(values.token)}"
        raise Refusal("contexts of value agreement", why=why, instead="give those of the same layer")
    sign, following = _leading(contexts, half, gated=model.shape.gated)
    end = (sign < 0).long()
    token = values.token.gather(1, end[:, None])[:, 0]
    tried = (following >= 0) & torch.isin(following, reader.tokens.cpu()) & (token >= 0)
    following = torch.where(tried, following, -1)
    drawn = _exchanged(token[tried], following[tried], draws, seed)
    share = _share(token[tried], following[tried])
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Agreement(
        values.layer,
        half,
        following,
        torch.where(tried, sign, 0),
        torch.where(tried, token, -1),
        values.strength.gather(1, end[:, None])[:, 0].masked_fill(~tried, torch.nan),
        _ranks(model, values.layer, reader, sign, following),
        share,
        agreement_share(token[tried], following[tried]),
        low,
        high,
        float(1 + (drawn >= share).sum()) / (1 + draws) if share == share else torch.nan,
        draws,
        seed,
    )


def agreement_share(one: Int[Tensor, " unit"], other: Int[Tensor, " unit"]) -> float:
    """The mean share of units at which two lists have the same token when one is exchanged at random: sum over tokens of p(t) q(t)."""
    if not len(one):
        return torch.nan
    size = 1 + int(torch.maximum(one, other).max())
    p, q = (each.bincount(minlength=size).double() / len(each) for each in (one, other))
    return float(p @ q)


def most_confident(agreements: Sequence[Agreement], count: int = 100) -> tuple[Int[Tensor, " layer"], float]:
    """Of the `count` values that stand out most among all tried: how many are in each of the layers given, and which share agrees.

    Beside it stands the share of all tried (`Agreement.share`). NaN where no unit is tried.
    Source: Geva et al. 2021, arXiv:2012.14913, section 4.
    """
    strength = torch.cat([each.strength for each in agreements]).nan_to_num(-torch.inf)
    layer = torch.cat([torch.full((len(each.token),), place) for place, each in enumerate(agreements)])
    agrees = torch.cat([(each.token == each.following) & (each.following >= 0) for each in agreements])
    order = strength.argsort(descending=True, stable=True)[: min(count, int((strength > -torch.inf).sum()))]
    return layer[order].bincount(minlength=len(agreements)), float(agrees[order].double().mean())


def _values(model: Model, layer: int) -> Float[Tensor, "unit d_model"]:
    if model.shape.experts:
        why = "a unit of an expert has its router's weight, and each expert its own values"
        raise Refusal(f"values of {model.name}", why=why, instead="use a model without experts")
    return written(model.weights, layer, model.weights.get("W_out", layer).float(), "mlp")


def _leading(contexts: Contexts, half: Half, *, gated: bool) -> tuple[Int[Tensor, " unit"], Int[Tensor, " unit"]]:
    """Sign of the activation where |h| is largest among a unit's contexts of a half, and the token that follows; 0 and -1 where none is."""
    groups, units, k = contexts.value.shape
    counts = (contexts.window >= 0) & (contexts.half == int(half)) & (contexts.value != 0)
    if not gated:
        counts &= contexts.value > 0
    size = torch.where(counts, contexts.value.abs(), -1.0).transpose(0, 1).reshape(units, groups * k)
    best, place = size.max(1)
    at = place[:, None]
    found = (
        each.transpose(0, 1).reshape(units, groups * k).gather(1, at)[:, 0] for each in (contexts.value, contexts.following)
    )
    value, following = found
    some = best > 0
    return torch.where(some, value.sign(), 0).long(), torch.where(some, following.long(), -1)


def _share(one: Int[Tensor, " unit"], other: Int[Tensor, " unit"]) -> float:
    return float((one == other).double().mean())


def _exchanged(token: Int[Tensor, " unit"], following: Int[Tensor, " unit"], draws: int, seed: int) -> Float[Tensor, " draw"]:
    """Shares that agree when values are exchanged among units; NaN where there is none."""
    generator = torch.Generator().manual_seed(seed)
    shares = [_share(token[torch.randperm(len(token), generator=generator)], following) for _ in range(draws)]
    return torch.tensor(shares, dtype=torch.float64)


def _ranks(
    model: Model, layer: int, reader: Reader, sign: Int[Tensor, " unit"], following: Int[Tensor, " unit"]
) -> Float[Tensor, " unit"]:
    """Scores of sign v above that of the following token, and half of those that equal it."""
    rank = torch.full(following.shape, torch.nan, dtype=torch.float64)
    tried = (following >= 0).nonzero()[:, 0]
    rows = reader.entering(_values(model, layer)[tried.to(model.device)] * sign[tried, None].to(model.device))
    column = torch.searchsorted(reader.tokens, following[tried].to(reader.tokens))
    for units, own, mine in zip(tried.split(_ROWS), rows.split(_ROWS), column.split(_ROWS), strict=True):
        scores = own @ reader.matrix
        wanted = scores.gather(1, mine[:, None])
        ties = (scores == wanted).sum(1) - 1
        rank[units] = ((scores > wanted).sum(1) + ties / 2).double().cpu()
    return rank
