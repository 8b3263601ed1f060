"""Attention scores split exactly by what queries and keys are made of: constants, mean, position, context, residual.

A norm is linear once its scale is fixed. With each token's own scale frozen, the query is a sum of five parts and so is the key,
and the scores of a head are the sum of 25 products, without remainder. Statistics of the products belong in `terms`, what heads do
with repeated tokens in `heads`, the positional form of their weights in `weights`.

Axes of this module: `part` is an entry of `PARTS`, `piece` of `PIECES`, `term` of `TERMS`; `all` is every entry of `PARTS`, where
`part` counts those of the stream.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import CONTENT, Batch, ExpertRows, Refusal, Role, Site, State
from microtome.geometry.decomposition import Parts
from microtome.geometry.terms import PIECES, TERMS, head_terms, rotations, shares
from microtome.model import Model, Norm, capture
from microtome.model.scoring import Scoring, scorings, turned
from microtome.numerics import hash_parts

__all__ = ["HeadSplit", "QKSplit", "Reading", "Side", "qk_split", "queries_and_keys", "readings", "stream_parts"]

_HELD: Final = 1 << 23
"""Numbers of all terms that are held together."""


@dataclass(frozen=True, eq=False)
class Side:
    """Queries or keys of a layer: projection per head, and the QK-norm behind it."""

    weight: Float[Tensor, "head d_model d_head"]
    bias: Float[Tensor, "head d_head"] | None
    norm: Norm | None


@dataclass(frozen=True, eq=False)
class Reading:
    """All that lies between the stream and the scores of a layer. `norm` is None where attention reads the stream itself."""

    norm: Norm | None
    query: Side
    key: Side
    scoring: Scoring


@dataclass(frozen=True, eq=False)
class HeadSplit:
    """What the scores of each head of a layer are made of, over the counted tokens of some windows.

    Scores are centred over the keys that a query may see, since softmax does not notice a constant; `energy` is a term's sum of
    squares over the sum of all terms' own, `share` its Shapley share of the variance of the scores, cov(term, scores) /
    var(scores): they add up to 1 and may be negative. `part_share` is the Shapley share of each piece where the players are pieces and
    a term counts once all its parts are in. `kl` is KL(softmax(scores) || softmax(scores without the piece)) in nats, averaged over
    queries, then over windows.

    Controls are the same head with its queries turned at random in its own d_head dimensions before they meet the keys: sizes
    stay, what they say to each other goes. Those of energies and shares are ratios of exact expectations; `kl_control` is the
    mean over one draw per window, and `gap_error` the standard error of `kl` - `kl_control` over windows. The bias has neither.
    `kl_error` is the standard error of `kl` itself.
    Where the model soft-caps scores, energies and shares are of scores before the cap. `error` is the largest difference between
    the sum of all terms and the model's own scores, relative to the largest score: rounding. Nothing is defined, and `undefined` says
    why, where no query sees two counted keys.
    """

    layer: int
    energy: Float[Tensor, "head term"]
    energy_control: Float[Tensor, "head term"]
    share: Float[Tensor, "head term"]
    share_control: Float[Tensor, "head term"]
    part_share: Float[Tensor, "head piece"]
    part_share_control: Float[Tensor, "head piece"]
    kl: Float[Tensor, "head piece"]
    kl_control: Float[Tensor, "head piece"]
    kl_error: Float[Tensor, "head piece"]
    gap_error: Float[Tensor, "head piece"]
    windows: int
    rows: int
    error: float
    undefined: str


def readings(model: Model, batch: Batch, layers: Iterable[int]) -> dict[int, Reading]:
    """How `layers` of a model read the stream, for positions up to those of the longest window in `batch`.

    Cost: a forward pass over one window; weights are views.
    """
    found = scorings(model, batch, layers)
    weights = model.weights

    def norm(name: str, layer: int) -> Norm | None:
        return weights.norm(name, layer) if weights.has(name, layer) else None

    def side(letter: str, layer: int) -> Side:
        bias = weights.get(f"b_{letter}", layer) if weights.has(f"b_{letter}", layer) else None
        return Side(weights.get(f"W_{letter}", layer), bias, norm(f"{letter.lower()}_norm", layer))

    return {
        layer: Reading(norm("attn_norm", layer), side("Q", layer), side("K", layer), scoring)
        for layer, scoring in found.items()
    }


def stream_parts(
    h: Float[Tensor, "token d_model"], mu: Float[Tensor, " d_model"], pos: Float[Tensor, "token d_model"]
) -> Float[Tensor, "part token d_model"]:
    """A window's hidden states as mu, pos, ctx and resid: ctx = mean over tokens of h - mu - pos, resid what is left."""
    rest = h - mu - pos
    ctx = rest.mean(0)
    return torch.stack([mu.expand_as(h), pos, ctx.expand_as(h), rest - ctx])


def queries_and_keys(
    reading: Reading, parts: Float[Tensor, "part token d_model"], places: Int[Tensor, " token"]
) -> tuple[Float[Tensor, "all token head d_head"], Float[Tensor, "all token head_kv d_head"]]:
    """The five parts of queries and of keys, as they meet each other.

    `parts` are those of the stream (mu, pos, ctx, resid, or any that add up to it) and `places` the tokens' positions in the window.

        lin_t(v) = gain (v - mean(v)) / s_t,  s_t the norm's scale of the whole token       (RMS norm: without the mean)
        const = bias of the norm, through W, plus bias of the projection;  part = lin_t(part) W

    A QK-norm is frozen the same way, by token and head (by token, where it runs over all heads), and its bias joins const. Then every
    part is rotated. Without a norm (post-norm encoders) const is the projection's bias alone.
    """
    whole = _frozen(reading.norm, torch.cat([torch.zeros_like(parts[:1]), parts]))
    turn = reading.scoring.turn
    query, key = (turned(turn, _projected(side, whole), places) for side in (reading.query, reading.key))
    return query, key


def _projected(side: Side, parts: Float[Tensor, "part token d_model"]) -> Float[Tensor, "part token head d_head"]:
    heads = torch.einsum("ptd,hde->pthe", parts, side.weight.to(parts))
    if side.bias is not None:
        heads[0] += side.bias.to(parts)
    if side.norm is None:
        return heads
    if side.norm.gain.numel() == heads.shape[-1]:
        return _frozen(side.norm, heads)
    return _frozen(side.norm, heads.flatten(-2)).view_as(heads)  # over all heads together


def _frozen(norm: Norm | None, parts: Float[Tensor, "part *any width"]) -> Float[Tensor, "part *any width"]:
    """Parts through a norm with the scale of their sum; the norm's bias joins the first part."""
    if norm is None:
        return parts
    if norm.kind == "layer":
        parts = parts - parts.mean(-1, keepdim=True)
    scale = torch.rsqrt(parts.sum(0).square().mean(-1, keepdim=True) + norm.eps)
    parts = parts * scale * norm.gain.to(parts)
    if norm.bias is not None:
        parts[0] += norm.bias.to(parts)
    return parts


@dataclass(frozen=True, eq=False)
class QKSplit:
    """The exact split of the query-key scores of all heads of a layer, summed up over windows. Meant for a sample of windows.

    `mu` and `pos` are of the stream that enters the layer, `pos` by place among the counted tokens of a window (`Parts`); ctx is the
    window's own and resid the rest. Keys are the counted tokens that have a row of `pos`; attention to others, a first token
    say, is left out, and attention to these is renormalised. Queries are the `queries` of them with the lowest hashes of (seed, window,
    position): any number of windows and queries estimates the same shares.
    With rotary positions a part that is the same at all tokens, mu, still tells distances: its query and key are turned apart.
    Cost: for each layer about three times its forward pass, with 64 queries in windows of 256 tokens (SmolLM2-135M on a CPU). The
    26 maps of as many heads as fit into 32 MiB are held at a time.
    Source: Song & Zhong 2023, arXiv:2310.04861, figure 4.
    """

    kind: ClassVar[str] = "geometry.qk_split"
    version: ClassVar[int] = 2

    layer: int
    reading: Reading
    mu: Float[Tensor, " d_model"]
    pos: Float[Tensor, "token d_model"]
    queries: int = 64
    seed: int = 0
    roles: frozenset[Role] = field(default=CONTENT)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What attention reads, and the model's scores: they say which keys a query sees, and check the sum."""
        return (Site("resid_pre", self.layer), Site("attn_scores", self.layer))

    def init(self) -> State:
        """No window."""
        heads, terms, pieces = len(self.reading.query.weight), len(TERMS), len(PIECES)
        sums = {"gram": (heads, terms, terms), "gram_control": (heads, terms, terms)}
        sums |= dict.fromkeys(("kl", "kl_control", "kl_squares", "gap_squares"), (heads, pieces))
        counts = {name: torch.zeros((), dtype=torch.int64) for name in ("windows", "rows")}
        shapes = sums | {"error": ()}
        return counts | {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        """Split each window of at least two counted tokens, in fp32 inside a window and in float64 across windows."""
        stream, scores = (values[site] for site in self.sites)
        assert isinstance(stream, Tensor)
        assert isinstance(scores, Tensor)
        counted = batch.counted(self.roles).to(stream.device)
        for row, window in enumerate(batch.window.tolist()):
            places = counted[row].nonzero()[: len(self.pos), 0]
            if len(places) < 2:
                continue
            h = stream[row, places]
            h = h.to(torch.promote_types(h.dtype, torch.float32))
            parts = stream_parts(h, self.mu.to(h), self.pos[: len(places)].to(h))
            query, key = queries_and_keys(self.reading, parts, places)
            asked = hash_parts(self.seed, window, places).argsort()[: self.queries].sort().values
            self._add(state, query[:, asked], key, scores[row][:, places[asked]][:, :, places], places, window)

    def _add(
        self,
        state: State,
        query: Float[Tensor, "part query head d_head"],
        key: Float[Tensor, "part key head_kv d_head"],
        scores: Float[Tensor, "head query key"],
        places: Int[Tensor, " key"],
        window: int,
    ) -> None:
        """Add one window's statistics, some heads at a time."""
        heads, width = query.shape[-2:]
        turns = rotations(heads, width, int(hash_parts(self.seed, window))).to(query)
        query, key = query.permute(2, 0, 1, 3), key.permute(2, 0, 1, 3)
        shared, scoring = heads // len(key), self.reading.scoring
        bias = None if scoring.bias is None else scoring.bias.to(query)[:, places]
        together = max(1, _HELD // (len(TERMS) * scores[0].numel()))
        found = [
            head_terms(
                scoring, query[some], key[some // shared], bias if bias is None else bias[some], scores[some], turns[some]
            )
            for some in torch.arange(heads, device=query.device).split(together)
        ]
        rows = int(found[0].rows[0])
        if not rows:
            return
        state["windows"] += 1
        state["rows"] += rows
        for name in ("gram", "gram_control", "kl", "kl_control"):
            state[name] += torch.cat([getattr(each, name) for each in found]).to(state[name])
        state["kl_squares"] += torch.cat([each.kl for each in found]).to(state["kl_squares"]).square()
        state["gap_squares"] += torch.cat([each.kl - each.kl_control for each in found]).to(state["gap_squares"]).square()
        state["error"] = torch.cat([state["error"][None], *(each.error.to(state["error"]) for each in found)]).amax()

    def merge(self, state: State, later: State) -> State:
        """Sums add up, of errors the larger one counts."""
        error = torch.maximum(state["error"], later["error"])
        return {name: tensor + later[name] for name, tensor in state.items()} | {"error": error}

    def result(self, state: State) -> HeadSplit:
        """Shares, divergences and their controls."""
        windows = int(state["windows"])
        kl, kl_control = (_mean(state[name], windows) for name in ("kl", "kl_control"))
        kl_error = _error(kl, state["kl_squares"], windows)
        gap_error = _error(kl - kl_control, state["gap_squares"], windows)
        for tensor in (kl_control, gap_error):
            tensor[:, PIECES.index("bias")] = torch.nan
        energy, share, part_share = shares(state["gram"])
        energy_control, share_control, part_share_control = shares(state["gram_control"])
        return HeadSplit(
            layer=self.layer,
            energy=energy,
            energy_control=energy_control,
            share=share,
            share_control=share_control,
            part_share=part_share,
            part_share_control=part_share_control,
            kl=kl,
            kl_control=kl_control,
            kl_error=kl_error,
            gap_error=gap_error,
            windows=windows,
            rows=int(state["rows"]),
            error=float(state["error"]),
            undefined="" if windows else "no query sees two counted keys",
        )


def qk_split(
    model: Model,
    batch: Batch,
    layer: int,
    parts: Parts,
    *,
    queries: int = 64,
    seed: int = 0,
    roles: frozenset[Role] = CONTENT,
) -> HeadSplit:
    """The split of a layer's query-key scores over the windows of `batch`, with mu and pos of `parts`: see `QKSplit`.

    Errors: `Refusal` where `parts` are of another site than the one that enters the layer.
    Source: Song & Zhong 2023, arXiv:2310.04861, figure 4.
    """
    entering = {Site("resid_pre", layer)} | ({Site("resid_post", layer - 1)} if layer else set())
    if parts.site not in entering:
        raise Refusal(
            f"attention of layer {layer} split by parts of {parts.site}",
            why=f"the layer reads {' or '.join(map(str, sorted(entering)))}",
            instead="pass the decomposition of that site",
        )
    fold = QKSplit(layer, readings(model, batch, [layer])[layer], parts.mu, parts.pos, queries, seed, roles)
    state = fold.init()
    fold.update(state, capture(model, batch, fold.sites), batch)
    return fold.result(state)


def _error(
    mean: Float[Tensor, "head piece"], squares: Float[Tensor, "head piece"], windows: int
) -> Float[Tensor, "head piece"]:
    """The standard error of a mean over windows, from the sum of squares; NaN for fewer than two."""
    if windows < 2:
        return torch.full_like(mean, torch.nan)
    return ((squares / windows - mean.square()).clamp(min=0) / (windows - 1)).sqrt()


def _mean(total: Float[Tensor, "head piece"], windows: int) -> Float[Tensor, "head piece"]:
    return total / windows if windows else torch.full_like(total, torch.nan)
