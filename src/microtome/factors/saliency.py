"""Which tokens of a window a unit's code at one of them is owed to: by taking tokens away, by gradients through the code, and by a fitted surrogate.

A token is taken away by putting one vector in the place of its embedding: positions, lengths and masks stay as they are, and all methods and their
judges take away alike. The target's own token is no player unless it is asked for. How far back the code looks at all belongs in `reach`; what codes
owe to other units, in `intervene`.

Additional axes: `player` counts the tokens that may be taken away, in order, `point` the steps of a curve, `step` those of a path.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from microtome.core import CONTENT, Basis, Batch, Refusal, Role, Site
from microtome.factors.basis import Factors
from microtome.factors.coding import Greedy, Lasso
from microtome.factors.dictionary import Dictionary, Encoder
from microtome.intervene.integrated import RULES
from microtome.model import Model, capture
from microtome.model.edit import edit_hooks
from microtome.model.hooks import attached

__all__ = [
    "YUN",
    "Attribution",
    "Faithful",
    "IntegratedGradients",
    "Lime",
    "Occlusion",
    "Saliency",
    "asked",
    "code_and_slope",
    "faithful",
    "stand_in",
]

Game = Callable[[Bool[Tensor, "row player"]], Float[Tensor, " row"]]
"""The code when only these players are there, for several such sets."""

StandIn = Literal["mean", "mask", "unknown"] | int
"""What stands in for a token: the vocabulary's mean embedding, that of the mask or the unknown token, or that of a token of an id."""

_EMBED: Final = Site("embed")
_TOKENS: Final = 8192
_FOLDS: Final = 5


def stand_in(model: Model, what: StandIn = "mean") -> Float[Tensor, " d_model"]:
    """The embedding that stands in for tokens that are taken away; a mean has nothing of any word, and a mask is what encoders know.

    Errors: `Refusal` for a token that the tokenizer does not have. Cost of a mean: one look at every embedding.
    """
    if what == "mean":
        ids = torch.arange(model.shape.vocab)
        total = sum(_embedded(model, some[:, None]).double().sum((0, 1)) for some in ids.split(_TOKENS))
        return torch.as_tensor(total / len(ids)).to(model.dtype)
    special = "mask_token_id" if what == "mask" else "unk_token_id"
    found = what if isinstance(what, int) else getattr(model.tokenizer, special, None)
    if found is None:
        raise Refusal(f"the {what} token of {model.name}", why="its tokenizer has none", instead='use the "mean" embedding')
    return _embedded(model, torch.tensor([[int(found)]]))[0, 0]


def _embedded(model: Model, ids: Int64[Tensor, "window token"]) -> Float[Tensor, "window token d_model"]:
    rows = torch.zeros(len(ids), dtype=torch.int64)
    roles = torch.full(ids.shape, int(Role.CONTENT), dtype=torch.uint8)
    batch = Batch(ids, roles, rows, rows, rows, rows.to(torch.uint8), rows, {}).to(model.device)
    return capture(model, batch, [_EMBED])[_EMBED].clone()


@dataclass(frozen=True, eq=False)
class Saliency:
    """One unit at one token of a window, the tokens that may be taken away, and the embedding that then takes their place. Made by `asked`."""

    model: Model
    basis: Basis
    batch: Batch
    position: int
    unit: int
    players: Int64[Tensor, " player"]
    stand_in: Float[Tensor, " d_model"]
    tokens: int = _TOKENS

    def codes(self, present: Bool[Tensor, "row player"]) -> Float64[Tensor, " row"]:
        """The code where only these players are there, and all tokens that are no players. Cost: a pass for each row."""
        absent = torch.zeros(len(present), self.batch.ids.shape[1], dtype=torch.bool)
        absent[:, self.players] = ~present.cpu()
        new, found = self.stand_in.to(self.model.device), []
        for some in absent.split(max(1, self.tokens // absent.shape[1])):
            away = some[..., None].to(self.model.device)
            values = self._read(len(some), lambda value, away=away: torch.where(away, new.to(value), value), "none")
            found.append(self.basis.encode(values)[:, 0, self.unit].double().cpu())
        return torch.cat(found)

    def moved(
        self, share: Float64[Tensor, " step"], through: Literal["code", "drive"]
    ) -> tuple[Float64[Tensor, " step"], Float64[Tensor, "step player"]]:
        """Codes where the players' embeddings are so far on the straight way from the stand-in to their own, and their slopes along each player's way."""
        codes, slopes = [], []
        own = capture(self.model, self.batch, [_EMBED])[_EMBED].clone()
        way = torch.zeros_like(own)
        way[:, self.players] = own[:, self.players] - self.stand_in.to(own)
        for some in share.split(max(1, self.tokens // own.shape[1])):
            moving = (own + (some[:, None, None].to(own.device) - 1) * way).to(own.dtype).requires_grad_()
            values = self._read(len(some), lambda value, moving=moving: moving.to(value), "kept")
            value = _traced(self.basis, values, self.unit, through)
            gradient = torch.autograd.grad(value.sum(), moving)[0] if value.requires_grad else torch.zeros_like(moving)
            codes.append(value.detach().double().cpu())
            slopes.append((gradient.double() * way.double()).sum(2)[:, self.players.to(own.device)].cpu())
        return torch.cat(codes), torch.cat(slopes)

    def _read(self, rows: int, change: Callable[[Tensor], Tensor], gradients: Literal["none", "kept"]) -> dict[Site, Tensor]:
        """What the basis reads at the target, with other embeddings in each of so many copies of the window."""
        batch = self.batch.take(torch.zeros(rows, dtype=torch.int64))
        with attached(edit_hooks(self.model, batch, {_EMBED: change})):
            held = capture(self.model, batch, self.basis.sites, gradients=gradients)
        return {site: value[:, self.position : self.position + 1] for site, value in held.items()}


def asked(
    model: Model,
    basis: Basis,
    batch: Batch,
    place: tuple[int, int],
    unit: int,
    *,
    instead: Float[Tensor, " d_model"],
    players: Literal["context", "all"] = "context",
) -> Saliency:
    """Ask of a unit at `place`, (row of the batch, position): which content tokens count. A causal model is not shown what comes behind.

    `instead` is the `stand_in`; "all" has the target's own token among the players, as the source work has.
    Errors: `Refusal` where there is no token that could be taken away.
    """
    row, position = place
    own = batch.alone(row).to(model.device)
    if model.shape.causal:
        behind = torch.arange(own.ids.shape[1], device=own.ids.device) > position
        own = replace(own, roles=own.roles.masked_fill(behind, int(Role.PAD))).trimmed()
    may = own.counted(CONTENT)[0].cpu()
    if players == "context":
        may[position] = False
    chosen = may.nonzero()[:, 0]
    if not len(chosen):
        why = "there is no other content token" + (" before it" if model.shape.causal else "")
        raise Refusal(f"saliency at token {position}", why=why, instead="ask of a token with context")
    return Saliency(model, basis, own, position, unit, chosen, instead)


def _traced(basis: Basis, values: dict[Site, Tensor], unit: int, through: Literal["code", "drive"]) -> Float[Tensor, " row"]:
    """The unit's code with what its gradient needs; `drive` is what an encoder makes before its rule."""
    if not isinstance(basis, Factors) or (through == "code" and isinstance(basis.dictionary.coder, Encoder)):
        return basis.encode(dict(values))[:, 0, unit]
    dictionary = basis.dictionary
    scaled = dictionary.scaled({site: value[:, 0] for site, value in values.items()})
    if isinstance(dictionary.coder, Encoder):
        encoder, crossed = dictionary.coder, dictionary.arrangement == "crosscoder"
        parts = [x @ encoder.weights[dictionary.place(s) if crossed else 0, :, unit].to(x) for s, x in scaled.items()]
        return sum(parts[1:], parts[0]) + encoder.bias[unit].to(parts[0])
    if through == "drive":
        raise Refusal("what drives an exact code", why="it has no encoder", instead='go through the "code"')
    (x,) = scaled.values()
    codes = dictionary.encode({site: value[:, 0].detach() for site, value in values.items()})
    value, slope = code_and_slope(dictionary, x.detach(), codes, unit)
    return value.to(x) + ((x - x.detach()) * slope.to(x)).sum(1)


def code_and_slope(
    dictionary: Dictionary, x: Float[Tensor, "row d_model"], codes: Float[Tensor, "row units"], unit: int
) -> tuple[Float64[Tensor, " row"], Float64[Tensor, "row d_model"]]:
    """A unit's exact code of scaled states x, and its derivative in x, from the active set S of the code: da_S/dx = (Phi_S Phi_S')^-1 Phi_S.

    There a_S = (Phi_S Phi_S')^-1 (Phi_S (x - b) - penalty), linear in x. Where the set changes, a lasso's code goes on without a jump; greedy codes, whose
    penalty is 0, do jump. 0 where the unit is not active.
    Errors: `Refusal` for codes that are no minimum over their set: those of an encoder, and of greedy fits but "matching". Cost: k^3 FLOP a row.
    Source: Efron et al. 2004, arXiv:math/0406456, section 3.1, on the lasso's active set.
    """
    coder = dictionary.coder
    if not isinstance(coder, Lasso) and not (isinstance(coder, Greedy) and coder.fit == "matching"):
        why = f"codes by {coder if isinstance(coder, Greedy) else 'an encoder'} are no minimum over their factors"
        raise Refusal("the closed form of a code's gradient", why=why, instead="use exact codes, or take tokens away")
    x = x.double() - dictionary.offset[0].to(x.device, torch.float64)
    value, slope = x.new_zeros(len(x)), torch.zeros_like(x)
    rows = (codes[:, unit] > 0).nonzero()[:, 0]
    if not len(rows):
        return value, slope
    inside = codes[rows] > 0
    member = inside.to(torch.uint8).topk(int(inside.sum(1).max()), dim=1).indices
    there = inside.gather(1, member)
    phi = dictionary.directions[0].to(x)[member] * there[..., None]
    gram = phi @ phi.mT + torch.diag_embed((~there).double())
    own = ((member == unit) & there).double()
    dual = (torch.linalg.pinv(gram, hermitian=True) @ own[..., None])[..., 0] * there
    slope[rows] = (dual[:, None] @ phi)[:, 0]
    penalty = coder.penalty if isinstance(coder, Lasso) else 0.0
    value[rows] = (slope[rows] * x[rows]).sum(1) - penalty * dual.sum(1)
    return value, slope


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each player is given of the code: `whole` with all of them there, `nothing` with none.

    `fit` is a surrogate's R^2 on the sets that it was fitted to, `held_out` that on others; NaN where nothing was fitted.
    """

    weight: Float64[Tensor, " player"]
    whole: float
    nothing: float
    fit: float = torch.nan
    held_out: float = torch.nan

    @property
    def gap(self) -> float:
        """By how much the weights do not add up to whole - nothing: an error of integrated gradients, not one of taking away."""
        return float(self.weight.sum()) - (self.whole - self.nothing)


@dataclass(frozen=True)
class Occlusion:
    """Take away each token by itself, or each run of `span` players; a player's weight is the mean loss over the runs with it, for one of its tokens.

    Exact: code(all) - code(all but this). Errors: `Refusal` for a span below 1. Cost: as many passes as there are players.
    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2, on occlusion of images.
    """

    span: int = 1

    def __post_init__(self) -> None:
        if self.span < 1:
            raise Refusal(f"occlusion of {self.span} tokens", why="nothing is taken away", instead="take away one or more")

    def of(self, codes: Game, players: int) -> Attribution:
        """Weights in any game."""
        span = min(self.span, players)
        place, first = torch.arange(players), torch.arange(players - span + 1)[:, None]
        runs = (place >= first) & (place < first + span)
        found = codes(torch.cat([torch.ones_like(runs[:1]), torch.zeros_like(runs[:1]), ~runs])).double()
        member = runs.double()
        weight = member.T @ (found[0] - found[2:]) / member.sum(0) / span
        return Attribution(weight, float(found[0]), float(found[1]))

    def attributed(self, saliency: Saliency) -> Attribution:
        """Weights of a unit's context."""
        return self.of(saliency.codes, len(saliency.players))


@dataclass(frozen=True)
class IntegratedGradients:
    """(e - e0) . integral over t from 0 to 1 of dcode/de at e0 + t (e - e0), all players' embeddings e moving together from the stand-in e0.

    Through an encoder by autograd, through exact codes by their closed form. Complete, up to `Attribution.gap`, where the code is continuous; a rule that keeps
    only what is above a threshold jumps by it, which no gradient sees: the "drive", what the encoder makes before its rule, does not jump.
    Source: Sundararajan et al. 2017, arXiv:1703.01365, section 3.
    Cost: `steps` passes forward and backward.
    """

    steps: int = 32
    through: Literal["code", "drive"] = "code"

    def attributed(self, saliency: Saliency) -> Attribution:
        """Weights of a unit's context."""
        places, weights = (torch.from_numpy(part) for part in RULES["midpoint"](self.steps))
        _, slopes = saliency.moved(places, self.through)
        ends, _ = saliency.moved(torch.tensor([0.0, 1.0], dtype=torch.float64), self.through)
        return Attribution(weights @ slopes, float(ends[1]), float(ends[0]))


@dataclass(frozen=True)
class Lime:
    """A linear surrogate of the code on random sets of players, seeded, with its fit.

    "shapley": sizes are drawn as the Shapley kernel weighs them, each set comes with its complement, and weights add up to whole - nothing: estimates of
    Shapley values. "cosine": how many are taken away is drawn evenly from 1 to all, sets weigh exp(-(100 (1 - cos))^2 / (2 width^2)) in a ridge of 1,
    for which, if `features` are told, as many are chosen by their size in a ridge of 0.01: what LIME does.
    Source: Ribeiro et al. 2016, arXiv:1602.04938, section 3; Lundberg and Lee 2017, arXiv:1705.07874, theorem 2.
    Source: Covert and Lee 2021, arXiv:2012.01536, on sets and their complements.
    Errors: `Refusal` for fewer than ten samples. Cost: a pass for each sample.
    """

    samples: int = 1000
    seed: int = 0
    kernel: Literal["shapley", "cosine"] = "shapley"
    width: float = 25.0
    features: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 10:
            raise Refusal(f"a surrogate of {self.samples} samples", why="they tell nothing", instead="draw ten or more")

    def of(self, codes: Game, players: int) -> Attribution:
        """Weights in any game."""
        present = self._drawn(players)
        found = codes(torch.cat([torch.ones_like(present[:1]), torch.zeros_like(present[:1]), present])).double()
        whole, nothing, y = float(found[0]), float(found[1]), found[2:]
        x = present.double()
        far = 100 * (1 - x.mean(1).sqrt()) if self.kernel == "cosine" else torch.zeros_like(y)
        heavy = (-far.square() / self.width**2).exp().sqrt()
        rows = torch.arange(len(y)) // 2  # a set and its complement stay together
        guess = torch.empty_like(y)
        for fold in range(_FOLDS):
            out = rows % _FOLDS == fold
            weight, bias = self._fitted(x[~out], y[~out], heavy[~out], (whole, nothing))
            guess[out] = x[out] @ weight + bias
        weight, bias = self._fitted(x, y, heavy, (whole, nothing))
        return Attribution(weight, whole, nothing, _explained(y, x @ weight + bias, heavy), _explained(y, guess, heavy))

    def attributed(self, saliency: Saliency) -> Attribution:
        """Weights of a unit's context."""
        return self.of(saliency.codes, len(saliency.players))

    def _drawn(self, players: int) -> Bool[Tensor, "row player"]:
        generator = torch.Generator().manual_seed(self.seed)
        paired = self.kernel == "shapley"
        count = (self.samples + 1) // 2 if paired else self.samples
        rank = torch.rand(count, players, generator=generator).argsort(dim=1).argsort(dim=1)
        if not paired:
            away = torch.randint(1, players + 1, (count, 1), generator=generator)
            away[0] = 0  # the first is the text as it is
            return rank >= away
        if players == 1:
            return torch.tensor([[True], [False]]).repeat(count, 1)[: self.samples]
        sizes = torch.arange(1, players, dtype=torch.float64)
        size = 1 + torch.multinomial(1 / (sizes * (players - sizes)), count, replacement=True, generator=generator)
        present = rank < size[:, None]
        return torch.stack([present, ~present], 1).flatten(0, 1)[: self.samples]

    def _fitted(self, x: Tensor, y: Tensor, heavy: Tensor, ends: tuple[float, float]) -> tuple[Tensor, float]:
        """Weights and intercept. Shapley's add up to whole - nothing: the last player's is what the others leave."""
        if self.kernel == "shapley":
            gain, last = ends[0] - ends[1], x[:, -1:]
            goal = y - ends[1] - last[:, 0] * gain
            others = torch.linalg.lstsq(x[:, :-1] - last, goal, driver="gelsd").solution if x.shape[1] > 1 else x.new_zeros(0)
            return torch.cat([others, gain - others.sum(0, keepdim=True)]), ends[1]
        chosen = torch.arange(x.shape[1])
        if self.features is not None and self.features < len(chosen):
            chosen = _ridge(x, y, heavy, 0.01)[0].abs().topk(self.features).indices
        weight, bias = _ridge(x[:, chosen], y, heavy, 1.0)
        return torch.zeros_like(x[0]).index_put((chosen,), weight), bias


YUN: Final = Lime(samples=2001, seed=0, kernel="cosine", width=25.0, features=30)
"""As the source work had it; there the unknown token stood in, and the target was one of the players."""


def _explained(y: Tensor, guess: Tensor, heavy: Tensor) -> float:
    """R^2, each set weighed as in the fit; NaN where the code never changes."""
    spread = (heavy * (y - (heavy * y).sum() / heavy.sum()).square()).sum()
    return float(1 - (heavy * (y - guess).square()).sum() / spread) if float(spread) > 0 else torch.nan


def _ridge(x: Tensor, y: Tensor, heavy: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Weighted, with a free intercept."""
    share, root = heavy / heavy.sum(), heavy.sqrt()
    mean_x, mean_y = share @ x, share @ y
    centred = (x - mean_x) * root[:, None]
    system = centred.T @ centred + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(system, centred.T @ ((y - mean_y) * root))
    return weight, float(mean_y - mean_x @ weight)


@dataclass(frozen=True)
class Faithful:
    """Areas under the code as a share of what it is in the whole, over the share of players taken away (or put in), the most positive first.

    A good deletion is small, a good insertion large; `by_chance` has (deletion, insertion) of orders drawn at random, as means.
    """

    deletion: float
    insertion: float
    by_chance: tuple[float, float]


def faithful(codes: Game, weight: Float64[Tensor, " player"], *, draws: int = 8, seed: int = 0, points: int = 33) -> Faithful:
    """Judge weights: take the players away, and put them in, in the order that the weights say.

    Source: Petsiuk et al. 2018, arXiv:1806.07421, section 3.2.
    Errors: `Refusal` where the code is 0 in the whole window.
    Cost: 2 points (1 + draws) passes at most; curves have a point for each player, or `points` where there are more.
    """
    players, generator = len(weight), torch.Generator().manual_seed(seed)
    orders = [
        weight.argsort(descending=True, stable=True),
        *(torch.randperm(players, generator=generator) for _ in range(draws)),
    ]
    counts = torch.linspace(0, players, min(points, players + 1)).round().long()
    ranks = torch.stack([order.argsort() for order in orders])
    gone = (ranks[:, None] < counts[:, None]).flatten(0, 1)
    found = codes(torch.cat([torch.ones_like(gone[:1]), ~gone, gone])).double()
    if float(found[0]) == 0:
        raise Refusal(
            "faithfulness of weights", why="the code is 0 in the whole window", instead="ask where the unit is active"
        )
    curves = (found[1:] / found[0]).view(2, len(orders), len(counts))
    area = torch.trapezoid(curves, counts.double() / players, dim=2)
    return Faithful(*area[:, 0].tolist(), by_chance=(float(area[0, 1:].mean()), float(area[1, 1:].mean())))
