"""What a head does to tokens: its two matrices over the vocabulary, as the thin factors whose product they are.

    ov    E' W_V W_O E            row: token attended to     column: token written
    qk    E' W_Q R W_K^T E'^T     row: token that asks       column: token attended to

Neither is formed: a `Circuit` has left (row x inner) and right (column x inner). Scale and soft cap of scores are monotone and left
out (`attention_scores` puts them back). Which entries stand out belongs in `pairs`, what all of them are like in `background`, which
rotation a layer has in `model.rotation`, eigenvalues in `heads`.

Token vectors are rows that meet the heads' weights: centred and folded ones for reading (`token_rows`), or what the norm makes of
a stream that is the token alone (`normalised`): then products are the model's own scores, biases included.

Axes of this module: `inner` is the d_head coordinate between the factors, `column` a token of the right side, `plane` two coordinates
that rotate together, `offset` a distance, position of the query minus position of the key.

Source: Dar et al. 2022, arXiv:2209.02535, table 1 and section 3.2; Su et al. 2021, arXiv:2104.09864, section 3.4, for the rotation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal, UnitAddress
from microtome.model import Norm, Weights
from microtome.model.norms import normed
from microtome.model.scoring import Scoring, Turn, turned
from microtome.readout import Folding, Reader
from microtome.vocabulary.background import side_moments
from microtome.vocabulary.parameters import GROUPS, block_of

__all__ = [
    "Biases",
    "Circuit",
    "Kind",
    "LayerHeads",
    "Planes",
    "Setting",
    "attention_scores",
    "attractiveness",
    "before_heads",
    "circuit_of",
    "circuits_of",
    "layer_heads",
    "normalised",
    "own_heads",
    "planes",
    "positional_profiles",
    "positional_sides",
    "stream_rows",
    "token_rows",
    "turned_by",
    "written_anyway",
]

Kind = Literal["ov", "qk"]
Biases = Literal["none", "varying", "all"]
Part = Literal["q", "k", "v", "o"]
_BLOCK: Final = 8192


@dataclass(frozen=True)
class Setting:
    """What of a head is taken along.

    `biases`: "none"; "varying", those that tell tokens attended to from one another (in qk b_Q W_K^T e, in ov nothing); or "all".
    `offsets`: how far the query stands behind the key, averaged over where there are several (`range(0, 256)`: planes that turn fast
    vanish); a negative one is ahead. None leaves the rotation out: content only. In sliding windows, none beyond the window are met.
    """

    biases: Biases = "none"
    offsets: Sequence[int] | None = None


_WHOLE: Final = Setting("all")


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The heads of a layer as directions of the stream: columns of W_Q, W_K, W_V and rows of W_O. Head h shares k and v of h // sharing.

    `biases` (of q, k, v) hold what the bias of the norm before comes to as well; `norms` (of q, k) are those of a QK-norm. `turn`
    is None where heads do not rotate, or nobody said how.
    """

    layer: int
    q: Float[Tensor, "head d_head d_model"]
    k: Float[Tensor, "head_kv d_head d_model"]
    v: Float[Tensor, "head_kv d_head d_model"]
    o: Float[Tensor, "head d_head d_model"]
    biases: Mapping[str, Float[Tensor, "_ d_head"]] = field(default_factory=dict)
    norms: Mapping[str, Norm] = field(default_factory=dict)
    turn: Turn | None = None

    @property
    def sharing(self) -> int:
        """Query heads to a key/value head."""
        return len(self.q) // len(self.k)


@dataclass(frozen=True, eq=False)
class Circuit:
    """A matrix over tokens as left right^T: entry (i, j) is the product of row i of `left` and row j of `right`."""

    kind: Kind
    layer: int
    head: int
    left: Float[Tensor, "row inner"]
    right: Float[Tensor, "column inner"]

    @property
    def address(self) -> UnitAddress:
        """Of the head."""
        return UnitAddress("heads", self.head, layer=self.layer)


@dataclass(frozen=True, eq=False)
class Planes:
    """Norm of what each plane of a rotation gives to a circuit, by its `first` coordinate, and of the coordinates that do not turn."""

    first: Int[Tensor, " plane"]
    norm: Float[Tensor, " plane"]
    still: float


def layer_heads(weights: Weights, layer: int, *, folding: Folding = "folded", turn: Turn | None = None) -> LayerHeads:
    """The heads of a layer in float32. Folded, they go with `normalised` or centred rows; raw, they are as stored.

    `turn` is the layer's of `model.rotation.turns`; without it circuits are those of content alone. Cost: the layer's attention weights.
    """
    directions = {name: _directions(weights, name, layer, folding) for name in ("W_Q", "W_K", "W_V", "W_O")}
    before = weights.norm("attn_norm", layer) if folding == "folded" and weights.has("attn_norm", layer) else None
    biases = {}
    for part in ("q", "k", "v"):
        name, found = part.upper(), []
        if weights.has(f"b_{name}", layer):
            found.append(weights.get(f"b_{name}", layer).to("cpu", torch.float32))
        if before is not None and before.bias is not None:
            found.append(_directions(weights, f"W_{name}", layer, "raw") @ before.bias.to("cpu", torch.float32))
        if found:
            biases[part] = torch.stack(found).sum(0)
    norms = {part: weights.norm(f"{part}_norm", layer) for part in ("q", "k") if weights.has(f"{part}_norm", layer)}
    q, k, v, o = directions.values()
    return LayerHeads(layer, q, k, v, o, biases, norms, turn)


def own_heads(heads: LayerHeads) -> LayerHeads:
    """Each query head with keys and values of its own, gains of a QK-norm folded in: what a head does to directions, biases aside."""
    sides = {}
    for part in ("q", "k"):
        side = getattr(heads, part)
        gain = heads.norms[part].gain.to(side).view(-1, side.shape[1], 1) if part in heads.norms else 1
        sides[part] = side * gain
    k, v = (side.repeat_interleave(heads.sharing, 0) for side in (sides["k"], heads.v))
    return LayerHeads(heads.layer, sides["q"], k, v, heads.o)


def token_rows(reader: Reader, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """A reader's vectors of these tokens, as rows. Errors: `Refusal` for a token it does not show. Cost: a copy of them."""
    place = torch.searchsorted(reader.tokens, tokens.to(reader.tokens)).clamp(max=len(reader.tokens) - 1)
    missing = tokens[(reader.tokens[place] != tokens.to(reader.tokens)).to(tokens.device)]
    if len(missing):
        raise Refusal(f"token {int(missing[0])}", why="it is not among those shown", instead="choose from the reader's tokens")
    rows = reader.matrix.T[place]
    return rows if reader.through is None else rows @ reader.through.to(rows).T


def stream_rows(weights: Weights, layer: int, tokens: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """What folded heads of a layer meet where the stream is one token and nothing else: its embedding through the norms before them.

    With it products are those of the model itself, exact in layer 0 of a model without added positions. Cost: a copy of the embeddings.
    """
    return before_heads(weights, layer, weights.get("W_E")[tokens].to("cpu", torch.float32))


def normalised(norm: Norm, rows: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """Rows as a norm leaves them before its gain and bias, which folded heads hold: at length sqrt(d_model), centred in a layer norm."""
    centred = rows - rows.mean(-1, keepdim=True) if norm.kind == "layer" else rows
    return centred * (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def circuits_of(
    heads: LayerHeads,
    kind: Kind,
    rows: Float[Tensor, "row d_model"],
    columns: Float[Tensor, "column d_model"],
    setting: Setting = Setting(),  # frozen
) -> Iterator[Circuit]:
    """The circuit of every head, one at a time; what heads share is computed once.

    A QK-norm divides each token's query and key by its own length, which is exact for a stream that is one token.
    Errors: `Refusal` for offsets where no rotation is known.
    Cost: 2 d_model d_head FLOP per token and side; memory for both sides of a head.
    """
    sides = _sided(kind, rows, columns)
    lengths = {part: _length_of_all(heads, part, tokens, setting) for part, tokens in sides.items()}
    own, common = ("o", "v") if kind == "ov" else ("q", "k")
    shared = torch.empty(0)
    for head in range(len(heads.q)):
        if head % heads.sharing == 0:
            shared = _side(heads, common, head // heads.sharing, sides[common], setting, lengths[common])
        mine = _side(heads, own, head, sides[own], setting, lengths[own])
        yield Circuit(kind, heads.layer, head, *((shared, mine) if kind == "ov" else (mine, shared)))


def circuit_of(
    heads: LayerHeads,
    kind: Kind,
    head: int,
    rows: Float[Tensor, "row d_model"],
    columns: Float[Tensor, "column d_model"],
    setting: Setting = Setting(),  # frozen
) -> Circuit:
    """The circuit of one head; see `circuits_of`. Errors: `Refusal` for a head that the layer does not have."""
    if not 0 <= head < len(heads.q):
        raise Refusal(
            f"head {head} of layer {heads.layer}", why=f"it has {len(heads.q)} heads", instead=f"use 0 to {len(heads.q) - 1}"
        )
    left, right = (
        _side(
            heads,
            part,
            head if part in "qo" else head // heads.sharing,
            tokens,
            setting,
            _length_of_all(heads, part, tokens, setting),
        )
        for part, tokens in _sided(kind, rows, columns).items()
    )
    return Circuit(kind, heads.layer, head, left, right)


def attention_scores(scoring: Scoring, products: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Entries of qk as the model's scores: times the scale, below the soft cap. Both keep their order; ALiBi's bias is not added."""
    scores = products * scoring.scale
    return scores if scoring.cap is None else torch.tanh(scores / scoring.cap) * scoring.cap


def attractiveness(heads: LayerHeads, head: int) -> Float[Tensor, " d_model"]:
    """What attracts a head whatever asks: b_Q W_K^T, whose product with a token is how much it does. Zero without a query bias.

    Errors: `Refusal` under a QK-norm, which makes no sum of a query and its bias.
    """
    if "q" in heads.norms:
        raise Refusal(
            f"what attracts head {head} of layer {heads.layer}",
            why="its queries are normed",
            instead="use the mean of the qk circuit",
        )
    keys = heads.k[head // heads.sharing]
    return heads.biases["q"][head].to(keys) @ keys if "q" in heads.biases else keys.new_zeros(keys.shape[1])


def written_anyway(heads: LayerHeads, head: int) -> Float[Tensor, " d_model"]:
    """What a head writes whatever it attends to: b_V W_O, the same in every row of ov because attention adds up to 1."""
    out = heads.o[head]
    return heads.biases["v"][head // heads.sharing].to(out) @ out if "v" in heads.biases else out.new_zeros(out.shape[1])


def positional_profiles(
    heads: LayerHeads, row: Float[Tensor, " d_model"], offsets: Sequence[int]
) -> Float[Tensor, "head offset"]:
    """s(offset) = q R k^T for a query and a key of the same token, the mean one say: where heads look for position's sake.

    With all biases; before scale and soft cap (`attention_scores`). Errors: `Refusal` where no rotation is known.
    """
    return turned_by(heads, *positional_sides(heads, row), offsets)


def positional_sides(
    heads: LayerHeads, row: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "head d_head"], Float[Tensor, "head d_head"]]:
    """The query and the key that each head makes of a token, before they rotate."""
    sides: dict[Part, Tensor] = {"q": heads.q, "k": heads.k}
    for part, mine in sides.items():
        length = _length_of_all(heads, part, row[None], _WHOLE)
        sides[part] = torch.cat([_side(heads, part, each, row[None], _WHOLE, length) for each in range(len(mine))])
    return sides["q"], sides["k"].repeat_interleave(heads.sharing, 0)


def turned_by(
    heads: LayerHeads, queries: Float[Tensor, "*any head d_head"], keys: Float[Tensor, "head d_head"], offsets: Sequence[int]
) -> Float[Tensor, "*any head offset"]:
    """Products of queries and keys that stand so far behind. Errors: `Refusal` where no rotation is known."""
    table = _signed(heads, offsets)
    spread = queries[..., None, :, :].expand(*queries.shape[:-2], len(offsets), *queries.shape[-2:])
    moved = turned(table, spread, torch.arange(len(offsets)))
    still = turned(heads.turn, keys[None], torch.tensor([0]))[0]
    return (moved * still).sum(-1).transpose(-1, -2)


def planes(circuit: Circuit, turn: Turn) -> Planes:
    """How much of a qk circuit is in each plane of its rotation: the Frobenius norm of its rank-2 part, that of a rotary "subhead".

    Single coordinates mean nothing under a rotation: planes may be turned and scaled without changing a score. The norm of a plane at
    offset 0 bounds it at every other.
    """
    products = side_moments(circuit.left).second * side_moments(circuit.right).second
    products = products * len(circuit.left) * len(circuit.right)
    axis = torch.arange(len(turn.partner))
    turning = (turn.sin != 0).any(0)
    first = axis[turning & (axis < turn.partner)]
    second = turn.partner[first]
    square = products[first, first] + products[second, second] + products[first, second] + products[second, first]
    rest = axis[~turning]
    still = float(products[rest][:, rest].sum().clamp(min=0)) ** 0.5
    return Planes(first, square.clamp(min=0).sqrt(), still)


def before_heads(weights: Weights, layer: int, rows: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """Embeddings through the norms that are before the heads of a layer, but for gain and bias of the last."""
    if weights.has("W_type"):
        rows = rows + weights.get("W_type")[0].to(rows)
    if weights.has("embed_norm"):
        rows = normed(weights.norm("embed_norm"), rows)
    return normalised(weights.norm("attn_norm", layer), rows) if weights.has("attn_norm", layer) else rows


def _directions(weights: Weights, name: str, layer: int, folding: Folding) -> Float[Tensor, "_ d_head d_model"]:
    block = block_of(weights, GROUPS[name], layer, folding=folding)
    assert block.lead is not None, "heads are an axis of these groups"
    return block.rows.unflatten(0, (block.lead, -1))


def _sided(kind: Kind, rows: Tensor, columns: Tensor) -> dict[Part, Tensor]:
    """What meets the tokens of each side, left first."""
    return {"v": rows, "o": columns} if kind == "ov" else {"q": rows, "k": columns}


def _biased(part: Part, setting: Setting) -> bool:
    return part != "o" and (setting.biases == "all" or (setting.biases == "varying" and part == "q"))


def _projected(
    heads: LayerHeads, part: Part, index: int, rows: Float[Tensor, "row d_model"], setting: Setting
) -> Float[Tensor, "row d_head"]:
    side = rows @ getattr(heads, part)[index].to(rows).T
    return side + heads.biases[part][index].to(side) if _biased(part, setting) and part in heads.biases else side


def _length_of_all(heads: LayerHeads, part: Part, rows: Tensor, setting: Setting) -> Float[Tensor, "row one"] | None:
    """Mean square over the coordinates of all heads, for a QK-norm that runs over them together; None for any other."""
    norm, width = heads.norms.get(part), heads.q.shape[1]
    if norm is None or len(norm.gain) == width:
        return None
    if norm.kind == "layer":
        raise Refusal("a layer norm over all heads", why="no family has had one so far", instead="use a model with an RMS norm")
    count = len(norm.gain) // width
    squares = (_projected(heads, part, index, rows, setting).square().sum(1, keepdim=True) for index in range(count))
    return torch.stack(list(squares)).sum(0) / len(norm.gain)


def _side(
    heads: LayerHeads, part: Part, index: int, rows: Tensor, setting: Setting, length: Tensor | None
) -> Float[Tensor, "row d_head"]:
    """Tokens on one side of a circuit: projected, biased, normed, rotated."""
    side = _projected(heads, part, index, rows, setting)
    norm = heads.norms.get(part)
    if norm is not None:
        unit = normalised(norm, side) if length is None else side * (length + norm.eps).rsqrt()
        gain = norm.gain.to(side).view(-1, side.shape[1])
        side = unit * gain[index if len(gain) > 1 else 0]
        side = side if norm.bias is None else side + norm.bias.to(side)
    if part in ("v", "o") or setting.offsets is None:
        return side
    turn = _signed(heads, setting.offsets if part == "q" else (0,))
    once = Turn(turn.cos.mean(0, keepdim=True), turn.sin.mean(0, keepdim=True), turn.partner)
    return turned(once, side[:, None, None], torch.tensor([0]))[:, 0, 0]


def _signed(heads: LayerHeads, offsets: Sequence[int]) -> Turn:
    """The rotation by each offset; one by -n is that by n turned back."""
    turn = heads.turn
    if turn is None:
        raise Refusal(
            f"heads of layer {heads.layer} at offsets",
            why="they do not rotate, or their rotation was not given",
            instead="leave offsets out, or give layer_heads the layer's turn (model.rotation.turns)",
        )
    distance = torch.tensor([abs(each) for each in offsets])
    if not len(distance) or int(distance.max()) >= len(turn.cos):
        raise Refusal(
            f"offsets up to {int(distance.max()) if len(distance) else 'none'}",
            why=f"the rotation is known for distances 0 to {len(turn.cos) - 1}",
            instead="ask model.rotation.turns for more positions, and for at least one offset",
        )
    sign = torch.tensor([-1.0 if each < 0 else 1.0 for each in offsets])[:, None]
    return Turn(turn.cos[distance], turn.sin[distance] * sign.to(turn.sin), turn.partner)
